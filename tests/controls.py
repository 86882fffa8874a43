"""What every explorer has to do, as one line in its file of tests, which has a fixture `explorer`.

from controls import every_control_changes_the_words

test_every_control_changes_the_words = every_control_changes_the_words
"""

from mammomil.explorer import Explorer


def every_control_changes_the_words(explorer: Explorer) -> None:
    """A reader who hears the picture learns from every control, at every position."""
    for control in explorer.controls:
        said = {explorer.scene(**{control.name: value}).words for value in control.values}
        assert len(said) == len(control.values), control.name
