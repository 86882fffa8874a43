"""The explorers of the book. Each is live with a kernel and self-contained HTML in a built page."""

from mammomil.explorers.ablation import ablation_explorer
from mammomil.explorers.attention import attention_explorer
from mammomil.explorers.budget import budget_explorer
from mammomil.explorers.froc import froc_explorer
from mammomil.explorers.iom import iom_explorer
from mammomil.explorers.plane import plane_explorer
from mammomil.explorers.ranking import ranking_explorer
from mammomil.explorers.readers import readers_explorer
from mammomil.explorers.replay import replay_explorer
from mammomil.explorers.retrieval import retrieval_explorer
from mammomil.explorers.saliency import saliency_explorer
from mammomil.explorers.selection import selection_explorer
from mammomil.explorers.views import views_explorer

__all__ = [
    "ablation_explorer",
    "attention_explorer",
    "budget_explorer",
    "froc_explorer",
    "iom_explorer",
    "plane_explorer",
    "ranking_explorer",
    "readers_explorer",
    "replay_explorer",
    "retrieval_explorer",
    "saliency_explorer",
    "selection_explorer",
    "views_explorer",
]
