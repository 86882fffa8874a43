// What `draw` of mammomil/explorers/iom.py does, in the reader's browser.
function (values, data, pen) {
  "use strict";
  const SIDE = 440, BADGE = 450, BARS = 524, ROW = 58, LEFT = 92, LENGTH = 284, STEP = 2, LEAST = 4;
  const GREY = "#8a8a8a", MALIGNANT = "#D55E00", PINK = "#CC79A7", SKY = "#56B4E9", YELLOW = "#F0E442";
  const LABELS = {1: ["malignant", MALIGNANT], "-1": ["ignored", YELLOW], 0: ["benign or normal", SKY]};
  const {contour, left: x, top: y, width, height, alpha} = values;
  const image = values.image ?? 0;
  const scale = SIDE / data.side;
  const right = Math.min(x + width, data.side), bottom = Math.min(y + height, data.side);
  const boxes = data.boxes[image];

  const overlap = (a0, a1, b0, b1) => Math.max(0, Math.min(a1, b1) - Math.max(a0, b0));
  const area = (right - x) * (bottom - y);
  const pairs = boxes.map(([x0, y0, x1, y1], k) => {
    let lesion = (x1 - x0) * (y1 - y0);
    let shared = overlap(x, right, x0, x1) * overlap(y, bottom, y0, y1);
    if (contour) {
      lesion = shared = 0;
      for (const [row, from, to] of data.runs[image][k]) {
        lesion += to - from;
        if (row >= y && row < bottom) shared += overlap(x, right, from, to);
      }
    }
    return [shared / Math.min(area, lesion), shared / (area + lesion - shared)];
  });
  const found = pairs.some(([iom]) => iom >= alpha) ? 1 : pairs.some(([iom]) => iom > 0) ? -1 : 0;
  const [word, colour] = LABELS[found];
  const two = (value) => (Math.floor(100 * value + 1e-9) / 100).toFixed(2);
  const cut = (value) => (value === 0 ? "0" : two(value) === "0.00" ? "under 0.01" : two(value));

  pen.image("crop" + image, 0, 0, SIDE, SIDE, {smooth: true});
  if (contour) pen.image("contour" + image, 0, 0, SIDE, SIDE);
  boxes.forEach(([x0, y0, x1, y1], k) => {
    if (!contour) {
      pen.rect(scale * x0, scale * y0, scale * (x1 - x0), scale * (y1 - y0), PINK, {stroke: 3});
      const across = overlap(x, right, x0, x1), down = overlap(y, bottom, y0, y1);
      if (across > 0 && down > 0)
        pen.rect(scale * Math.max(x, x0), scale * Math.max(y, y0), scale * across, scale * down, undefined,
          {fill: colour, stroke: 0, opacity: 0.35});
    }
    if (boxes.length > 1)
      pen.text(scale * x0 + 6, scale * y1 - 7, k + 1, {size: 20, bold: true, halo: true});
  });
  pen.rect(scale * x, scale * y, scale * (right - x), scale * (bottom - y), colour, {stroke: 4});
  pen.handle(scale * x, scale * y, {left: ["x", 0, scale * STEP], top: ["y", 0, scale * STEP]});
  pen.handle(scale * right, scale * bottom, {
    width: ["x", scale * (x + LEAST), scale * STEP],
    height: ["y", scale * (y + LEAST), scale * STEP],
  });
  pen.rect(0, BADGE, SIDE, 34, undefined, {fill: colour, stroke: 0});
  pen.text(SIDE / 2, BADGE + 23, "This region: " + word, {size: 18, anchor: "middle", bold: true, colour: "#000"});

  const top = BARS - 8, tall = ROW * data.most - 2, border = LEFT + LENGTH * alpha;
  pen.rect(LEFT, top, LENGTH * alpha, tall, undefined, {fill: YELLOW, stroke: 0, opacity: 0.35});
  pen.rect(border, top, LENGTH * (1 - alpha), tall, undefined, {fill: MALIGNANT, stroke: 0, opacity: 0.25});
  if (alpha >= 0.3) pen.text(LEFT + 4, top - 7, "ignored", {size: 16});
  if (alpha <= 0.7) pen.text(LEFT + LENGTH, top - 7, "malignant", {size: 16, anchor: "end"});
  pairs.forEach(([iom, iou], k) => {
    const row = BARS + ROW * k;
    const number = boxes.length > 1 ? " " + (k + 1) : "";
    pen.text(LEFT - 8, row + 15, "IoM" + number, {size: 17, anchor: "end", bold: true});
    pen.text(LEFT - 8, row + 37, "IoU" + number, {size: 17, anchor: "end"});
    pen.rect(LEFT, row, LENGTH * iom, 20, undefined, {fill: iom >= alpha ? MALIGNANT : YELLOW, stroke: 1});
    pen.rect(LEFT, row + 22, LENGTH * iou, 20, undefined, {fill: GREY, stroke: 1});
    for (const [value, base] of [[iom, row + 16], [iou, row + 38]])
      pen.text(LEFT + LENGTH + 8, base, cut(value).replace("under ", "< "), {size: 17});
  });
  pen.line([[LEFT, top], [LEFT, top + tall]], SKY, {stroke: 5});
  pen.line([[border, top - 4], [border, top + tall + 4]], undefined, {stroke: 2.5});
  pen.text(border, top + tall + 21, "α = " + alpha, {size: 17, anchor: "middle", bold: true});

  const lines = pairs.map(([iom, iou], k) => "Lesion " + (k + 1) + ": IoM " + cut(iom) + ", IoU " + cut(iou));
  return (
    data.names[image] + ", lesions as " + (contour ? "contours" : "boxes") + ". Region of " + (right - x) + " x " +
    (bottom - y) + " pixels at " + x + ", " + y + ": " + word + " at alpha " + alpha + ". " + lines.join("; ") + "."
  );
}
