function (values, data, pen) {
  "use strict";
  // As in explorers/ranking.py, which asks the library; here both softmaxes are written out.
  const WIDTH = 450, TABLE = 312, ROW = 34, CLASSES = 30, SHARE = 110;
  const COLUMN = 154, STEP = 75, BAR = 66, AXIS = 122, END = 402, LEAST = -4;
  const GREY = "#8a8a8a", BENIGN = "#0072B2", MALIGNANT = "#D55E00", YELLOW = "#F0E442";
  const NAMES = ["normal", "benign", "malignant"], FINDINGS = ["benign", "malignant"];
  const COLOURS = [GREY, BENIGN, MALIGNANT, BENIGN, MALIGNANT];
  const LOGITS = ["normal", "benign", "malignant", "rank_benign", "rank_malignant"];
  const softmax = (logits) => {
    const most = Math.max(...logits), powers = logits.map((v) => Math.exp(v - most));
    const total = powers.reduce((a, b) => a + b);
    return powers.map((v) => v / total);
  };
  const signed = (v) => (v < 0 ? "" : "+") + v.toFixed(1);
  const listed = (names, numbers) => names.map((name, i) => name + " " + numbers[i].toFixed(2)).join(", ");

  const region = values.region, own = data.logits[region], count = data.logits.length;
  const mine = own.map((v, k) => v + values[LOGITS[k]]);
  const logits = data.logits.map((row, i) => (i === region ? mine : row));
  const cls = logits.map((row) =>
    values.has_normal ? softmax(row.slice(0, 3)) : [0, ...softmax(row.slice(1, 3))]);
  const ranks = [3, 4].map((k) => softmax(logits.map((row) => row[k])));
  const det = logits.map((_, i) => [ranks[0][i], ranks[1][i]]);
  const scores = logits.map((_, i) => [0, 1].map((c) => cls[i][c + 1] * det[i][c]));
  const y = [0, 1].map((c) => scores.reduce((sum, row) => sum + row[c], 0));

  pen.image("mammogram", 0, 0, data.wide, data.tall, {smooth: true});
  data.places.forEach(([x0, y0, x1, y1], i) => {
    const half = (x1 - x0) / 2, middle = (y0 + y1) / 2, chosen = i === region;
    [BENIGN, MALIGNANT].forEach((fill, c) =>
      pen.rect(x0 + c * half, y0, half, y1 - y0, undefined,
        {fill, stroke: 0, opacity: Math.round(90 * scores[i][c]) / 100}));
    pen.rect(x0, y0, x1 - x0, y1 - y0, chosen ? YELLOW : "#fff", {stroke: chosen ? 3 : 1});
    pen.text(x0 + half, middle + 5, i + 1, {size: 15, anchor: "middle", bold: true, halo: true});
    pen.hot(x0 + half, middle, 13, "choose region " + (i + 1), {region: i});
  });

  const left = data.wide + 18, length = WIDTH - left - 10;
  pen.text(left, 18, "The image (Eq. 3)", {size: 16, bold: true});
  FINDINGS.forEach((name, c) => {
    const top = 44 + 62 * c, mark = left + length * data.y[c];
    pen.text(left, top, name + " " + y[c].toFixed(2), {size: 16});
    pen.rect(left, top + 8, length, 20, undefined, {stroke: 1});
    pen.rect(left, top + 8, length * y[c], 20, undefined, {fill: COLOURS[c + 1], stroke: 0});
    pen.line([[mark, top + 4], [mark, top + 32]], undefined, {stroke: 2});
  });
  NAMES.forEach((name, c) => {
    pen.rect(left, 178 + 24 * c, 14, 14, undefined, {fill: COLOURS[c], stroke: 0});
    pen.text(left + 22, 190 + 24 * c, name, {size: 15});
  });

  const heads = [[CLASSES, "classes", "N, B, M"], [COLUMN, "ranking", "benign"], [COLUMN + STEP, "", "malignant"],
    [COLUMN + 2 * STEP, "product", "benign"], [COLUMN + 3 * STEP, "", "malignant"]];
  for (const [x, upper, lower] of heads) {
    if (upper) pen.text(x, TABLE - 28, upper, {size: 15, bold: true});
    pen.text(x, TABLE - 10, lower, {size: 13});
  }
  logits.forEach((_, i) => {
    const top = TABLE + i * ROW;
    if (i === region) pen.rect(0, top - 2, WIDTH, ROW, undefined, {fill: YELLOW, stroke: 0, opacity: 0.25});
    pen.text(8, top + 20, i + 1, {size: 15, bold: true});
    let from = CLASSES;
    cls[i].forEach((share, c) => {
      pen.text(CLASSES + 40 * c, top + 13, share.toFixed(2), {size: 14});
      pen.rect(from, top + 18, SHARE * share, 10, undefined, {fill: COLOURS[c], stroke: 0});
      from += SHARE * share;
    });
    [...det[i], ...scores[i]].forEach((value, k) => {
      pen.text(COLUMN + STEP * k, top + 13, value.toFixed(2), {size: 14});
      pen.rect(COLUMN + STEP * k, top + 18, BAR * value, 10, undefined, {fill: COLOURS[1 + (k % 2)], stroke: 0});
    });
  });
  const bottom = TABLE + count * ROW;
  pen.line([[0, bottom], [WIDTH, bottom]], GREY, {stroke: 1});
  pen.text(8, bottom + 18, "sum: rows 1.00", {size: 14});
  [1, 1, ...y].forEach((total, k) =>
    pen.text(COLUMN + STEP * k, bottom + 18, total.toFixed(2), {size: 15, bold: true}));

  const top = bottom + 60, unit = (END - AXIS) / (2 * data.reach), zero = AXIS + data.reach * unit;
  pen.text(0, top - 8, "Logits of region " + (region + 1), {size: 16, bold: true});
  LOGITS.forEach((name, k) => {
    const at = top + 16 + 30 * k, mark = zero + unit * own[k];
    pen.text(0, at + 5, name.replace("_", " "), {size: 15});
    pen.line([[AXIS, at], [END, at]], GREY, {stroke: 1});
    pen.rect(zero + unit * Math.min(mine[k], 0), at - 8, unit * Math.abs(mine[k]), 16, undefined,
      {fill: COLOURS[k], stroke: 0, opacity: values.has_normal || k ? 1 : 0.3});
    pen.line([[mark, at - 11], [mark, at + 11]], undefined, {stroke: 2});
    pen.text(WIDTH, at + 5, signed(mine[k]), {size: 15, anchor: "end"});
    pen.handle(zero + unit * mine[k], at, {[name]: ["x", zero + unit * (own[k] + LEAST), unit / 2]});
  });
  pen.line([[zero, top], [zero, top + 152]], GREY, {stroke: 1});

  return "Region " + (region + 1) + " of " + count + ". Logits: " +
    LOGITS.map((name, k) => name.replace("_", " ") + " " + signed(mine[k])).join(", ") +
    ". Classes: " + listed(NAMES, cls[region]) + ". Its share of the rankings: " + listed(FINDINGS, det[region]) +
    ". Products: " + listed(FINDINGS, scores[region]) + ". The image: " + listed(FINDINGS, y) + "." +
    (values.has_normal ? "" : " There is no normal class.");
}
