// SPDX-License-Identifier: Apache-2.0
// A picture with its faces on a canvas that has as many pixels as the screen shows.

const COLOURS = {
  anger: "#ef4444", disgust: "#22a55b", fear: "#a855f7", happiness: "#f5b301", sadness: "#3b82f6",
  surprise: "#f97316", neutral: "#94a3b8", contempt: "#14b8a6",
};
const OTHERS = ["#ec4899", "#06b6d4", "#84cc16", "#8b5cf6", "#d97706", "#0ea5e9"];
const FONT = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const LARGEST = 8; // a face of 48 pixels is shown this much larger at most

export function colour(name, classes) {
  return COLOURS[name] || OTHERS[Math.max(0, classes.indexOf(name)) % OTHERS.length];
}

export function percent(value) {
  return `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
}

// shown: {source, size: [w, h], faces, mirror, selected}; source is null where the browser cannot decode the picture.
export function draw(canvas, room, shown) {
  const [width, height] = shown.size;
  const scale = Math.min(room.width / width, room.height / height, LARGEST);
  const dots = window.devicePixelRatio || 1;
  canvas.style.width = `${width * scale}px`;
  canvas.style.height = `${height * scale}px`;
  canvas.width = Math.max(1, Math.round(width * scale * dots));
  canvas.height = Math.max(1, Math.round(height * scale * dots));
  const pen = canvas.getContext("2d");
  picture(pen, canvas, shown);
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  const page = { width: width * scale, height: height * scale };
  const boxes = shown.faces.map((face) => place(face, scale, shown.mirror ? width : 0));
  shown.faces.forEach((face, index) => frame(pen, face, boxes[index], index === shown.selected));
  shown.faces.forEach((face, index) => chip(pen, face, boxes[index], page));
  const face = shown.faces[shown.selected];
  if (face) bars(pen, face, boxes[shown.selected], page, boxes);
  return boxes;
}

function picture(pen, canvas, shown) {
  pen.setTransform(1, 0, 0, 1, 0, 0);
  if (!shown.source) {
    pen.fillStyle = "#334155";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    return;
  }
  if (shown.mirror) pen.setTransform(-1, 0, 0, 1, canvas.width, 0);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(shown.source, 0, 0, canvas.width, canvas.height);
}

function place(face, scale, mirrored) {
  const [left, top, width, height] = face.box;
  const x = mirrored ? mirrored - left - width : left;
  const points = (face.points || []).map(([px, py]) => [(mirrored ? mirrored - px : px) * scale, py * scale]);
  return { x: x * scale, y: top * scale, width: width * scale, height: height * scale, points };
}

function frame(pen, face, box, selected) {
  const radius = Math.min(10, box.width / 6);
  for (const [style, line] of [["rgb(0 0 0 / 45%)", selected ? 6 : 4], [colour(face.label, Object.keys(face.probabilities)), selected ? 3.5 : 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = line;
    pen.beginPath();
    pen.roundRect(box.x, box.y, box.width, box.height, radius);
    pen.stroke();
  }
  if (box.width < 60) return;
  for (const [x, y] of box.points) {
    pen.fillStyle = "rgb(255 255 255 / 85%)";
    pen.beginPath();
    pen.arc(x, y, 2, 0, 7);
    pen.fill();
  }
}

function chip(pen, face, box, page) {
  const size = box.width < 50 ? 10 : 13;
  const number = face.track ? `#${face.track} ` : "";
  const text = `${number}${face.label}${box.width < 80 ? "" : ` ${percent(face.score)}`}`;
  pen.font = `600 ${size}px ${FONT}`;
  const width = pen.measureText(text).width + 12;
  const height = size + 8;
  const x = Math.max(0, Math.min(box.x - 1, page.width - width));
  const y = box.y - height - 3 >= 0 ? box.y - height - 3 : Math.min(box.y + 4, page.height - height);
  pen.fillStyle = colour(face.label, Object.keys(face.probabilities));
  pen.beginPath();
  pen.roundRect(x, y, width, height, 5);
  pen.fill();
  pen.fillStyle = "#10121b";
  pen.textBaseline = "middle";
  pen.fillText(text, x + 6, y + height / 2 + 0.5);
}

// The likeliest classes beside the face: where they cover no face, or not at all, as they also stand beside the picture.
function bars(pen, face, box, page, boxes) {
  const rows = Object.entries(face.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 4);
  const [width, row] = [138, 17];
  const height = rows.length * row + 8;
  const [right, below] = [box.x + box.width + 8, box.y + box.height + 6];
  const places = [[right, box.y], [box.x - width - 8, box.y], [box.x, below], [right - width - 8, below], [box.x, box.y - height - 30]];
  const free = ([x, y]) =>
    x >= 2 && y >= 2 && x + width <= page.width - 2 && y + height <= page.height - 2 &&
    boxes.every((other) => x >= other.x + other.width || other.x >= x + width || y >= other.y + other.height || other.y - 24 >= y + height);
  const place = places.find(free);
  if (!place) return;
  const [x, y] = place;
  pen.fillStyle = "rgb(12 14 22 / 72%)";
  pen.beginPath();
  pen.roundRect(x, y, width, height, 7);
  pen.fill();
  pen.font = `11px ${FONT}`;
  pen.textBaseline = "middle";
  rows.forEach(([name, value], index) => {
    const top = y + 4 + index * row;
    pen.fillStyle = "rgb(255 255 255 / 12%)";
    pen.fillRect(x + 74, top + 5, width - 82, 7);
    pen.fillStyle = colour(name, Object.keys(face.probabilities));
    pen.fillRect(x + 74, top + 5, (width - 82) * value, 7);
    pen.fillStyle = "#fff";
    pen.fillText(name, x + 8, top + row / 2, 62);
  });
}
