// What `draw` of mammomil/explorers/plane.py does, in the reader's browser; the SVM was asked before.
function (values, data, pen) {
  "use strict";
  const WIDTH = 440, LEFT = 46, TOP = 70, SIDE = 384, ROW = TOP + SIDE + 50, TALL = 250, BARS = 96;
  const INK = "currentColor", BENIGN = "#0072B2", MALIGNANT = "#D55E00";
  const COLOURS = ["#8a8a8a", BENIGN, MALIGNANT, INK], FIRST = 0.05, SIZE = 15;
  const CORNERS = {2: [[0, -1], [0.866, 0.5], [-0.866, 0.5]], 3: [[0, -1], [1, 0], [0, 1], [-1, 0]]};
  const {epoch, image, task, threshold, training} = values;
  const balanced = Number(values.balanced), end = TOP + SIDE;
  const points = data.points[epoch], called = data.called[epoch][balanced];
  const two = (value) => (Math.floor(100 * value + 0.5) / 100).toFixed(2);
  const place = ([benign, malignant]) => [LEFT + SIDE * malignant, TOP + SIDE * (1 - benign)];
  const write = (x, y, text, more = {}) => pen.text(x, y, text, {size: SIZE, ...more});

  function point([x, y], kind, full, size = 1, opacity = 1) {
    const colour = COLOURS[kind], look = {fill: full ? colour : null, stroke: 1.8, opacity};
    if (kind === 0) return pen.circle(x, y, 4.5 * size, colour, look);
    const side = 8.5 * size;
    if (kind === 1) return pen.rect(x - side / 2, y - side / 2, side, side, colour, look);
    const reach = size * (full ? {2: 2.6, 3: 3} : {2: 4.8, 3: 5})[kind];
    const corners = CORNERS[kind].map(([across, down]) => [x + reach * across, y + reach * down]);
    pen.line([...corners, ...corners.slice(0, 2)], colour, {stroke: full ? 4.2 : 1.8, opacity});
  }

  pen.image("tint" + epoch + "-" + balanced, LEFT, TOP, SIDE, SIDE);
  pen.rect(LEFT, TOP, SIDE, SIDE, INK, {stroke: 1});
  for (const share of [0, 0.5, 1]) {
    write(LEFT + SIDE * share, end + 24, share, {anchor: "middle"});
    write(LEFT - 8, end - SIDE * share + 5, share, {anchor: "end"});
  }
  write(LEFT + SIDE / 2, end + 42, "p(malignant)", {anchor: "middle", bold: true});
  write(2, TOP - 10, "p(benign)", {bold: true});
  write(LEFT + 6, end - 8, "normal");
  write(LEFT + 6, TOP + 18, "benign");
  write(LEFT + SIDE - 6, end - 8, "malignant", {anchor: "end"});
  write(LEFT + SIDE - 6, TOP + 18, "both", {anchor: "end"});
  const cut = LEFT + SIDE * threshold, level = task ? TOP + SIDE * (1 - threshold) : TOP;
  const corner = task ? [[LEFT, level], [cut, level]] : [[cut, TOP]];
  pen.line([...corner, [cut, end]], INK, {stroke: 2.5, dashed: true});
  if (training) data.lessons[epoch].forEach((p, i) => point(place(p), data.taught[i], false, 0.6, 0.6));
  points.forEach((p, i) => point(place(p), data.true[i], called[i] === data.kind[i]));
  pen.circle(...place(points[image]), 11, INK, {stroke: 2.5});
  [[10, 14], [10, 36], [150, 14], [150, 36]].forEach(([x, y], k) => {
    point([x, y - 5], k, true);
    write(x + 12, y, data.short[k] + ": " + data.true.filter((one) => one === k).length);
  });
  write(WIDTH - 2, 14, "hollow:", {anchor: "end"});
  write(WIDTH - 2, 36, "SVM wrong", {anchor: "end"});

  pen.image("image" + image, 0, ROW, data.width[image], TALL, {smooth: true});
  for (const [x, y, width, height, c, score] of data.frames[image]) {
    pen.rect(x, ROW + y, width, height, [BENIGN, MALIGNANT][c], {stroke: score ? 2 : 2.5, dashed: score === null});
    if (score) pen.text(x + width + 2, ROW + y + 12, "BM"[c] + " " + score, {size: 14, halo: true});
  }
  const [benign, malignant] = points[image], at = 186;
  const above = points.map(([b, m]) => (task ? Math.max(b, m) : m) >= threshold);
  const sick = data.positive[task].map((one) => one === 1);
  const count = (test) => points.filter((_, i) => test(i)).length;
  const rate = [
    "sensitivity " + count((i) => above[i] && sick[i]) + " of " + count((i) => sick[i]),
    "specificity " + count((i) => !above[i] && !sick[i]) + " of " + count((i) => !sick[i]),
    "AUROC " + data.area[epoch][task],
  ];
  const verdict = data.classes[called[image]] + ", " + (called[image] === data.kind[image] ? "right" : "wrong");
  const right = count((i) => called[i] === data.kind[i]) + " of " + points.length;
  const learned = data.lessonsRight[epoch][balanced], lessons = data.taught.length;
  write(at, ROW + 14, "Image " + (image + 1) + ": " + data.short[data.true[image]], {bold: true});
  for (const [y, name, p, colour] of [[38, "malignant", malignant, MALIGNANT], [62, "benign", benign, BENIGN]]) {
    write(at, ROW + y, "p(" + name + ") " + two(p));
    pen.rect(at + 152, ROW + y - 12, BARS, 14, INK, {stroke: 1});
    pen.rect(at + 152, ROW + y - 12, BARS * p, 14, INK, {fill: colour, stroke: 0});
  }
  write(at, ROW + 88, "SVM: " + verdict);
  write(at, ROW + 110, "right in " + right + " images");
  if (training) write(at, ROW + 132, "and " + learned + " of " + lessons + " it learned from");
  write(at, ROW + 168, data.tasks[task] + ", threshold " + two(threshold), {bold: true});
  rate.forEach((text, k) => write(at, ROW + 190 + 22 * k, text));
  points.forEach((p, i) => pen.hot(...place(p), data.radii[epoch][i], data.names[i], {image: i}));
  pen.handle(cut, end, {threshold: ["x", LEFT + SIDE * FIRST, SIDE / 20]});

  return (
    "Epoch " + data.epochs[epoch] + ". Image " + (image + 1) + ", " + data.kinds[data.true[image]] +
    ": p(malignant) " + two(malignant) + ", p(benign) " + two(benign) + ". The SVM" +
    (balanced ? ", classes weighed alike," : "") + " calls it " + verdict + "; it is right in " + right + " images" +
    (training ? " and in " + learned + " of the " + lessons + " it has learned from" : "") + ". " +
    data.tasks[task] + ", called where " + data.rules[task] + " is " + two(threshold) + " or more: " +
    rate.join(", ") + "."
  );
}
