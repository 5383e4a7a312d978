// SPDX-License-Identifier: Apache-2.0
import { colour, draw, percent } from "./draw.js";
import { Link } from "./link.js";

const $ = (id) => document.getElementById(id);
const SIDE = 640; // longest side of a camera's frame that is sent: the detector's
let offers = [];
let limits = { bytes: Infinity };
let shown = null; // what the canvas shows, see draw.js
let boxes = [];
let still = null; // bytes and picture of the last file, to look at again under other settings
let stream = null; // the open camera
let latest = 0; // the number of the last picture that was asked for

const link = new Link({ hello: greet, state: showState });

function showState(state) {
  $("state").className = `state ${state}`;
  $("state").textContent = { on: "connected", off: "not connected", connecting: "connecting" }[state];
}

function say(message) {
  $("message").hidden = !message;
  $("message").textContent = message || "";
}

// Settings

async function greet(hello) {
  const first = !offers.length;
  offers = hello.weights;
  limits = hello.limits;
  $("detector").hidden = !hello.detector_missing;
  $("detector").textContent = hello.detector_missing
    ? `No face detector, so each picture is taken as one face. (${hello.detector_missing})` : "";
  $("faces-mode").options[0].disabled = Boolean(hello.detector_missing);
  if (first) {
    $("weights").replaceChildren(...offers.map(({ name }) => new Option(name, name)));
    choose(hello.settings);
  }
  await apply((message) => link.send(message));
}

function choose(settings) {
  $("weights").value = settings.weights;
  listPrecisions();
  $("precision").value = settings.precision || "";
  $("faces-mode").value = settings.faces;
}

function listPrecisions() {
  const offer = offers.find(({ name }) => name === $("weights").value) || { precisions: [] };
  const before = $("precision").value;
  $("precision").replaceChildren(...offer.precisions.map((name) => new Option(name || "as compiled", name || "")));
  if (offer.precisions.includes(before || null)) $("precision").value = before;
}

let applied = null;

async function apply(send) {
  const settings = {
    weights: $("weights").value,
    precision: $("precision").value || null,
    faces: $("faces-mode").value,
    live: Boolean(stream),
    smooth: stream ? Number($("smooth").value) : 0,
  };
  try {
    $("network").textContent = "loading …";
    const answer = await send(settings);
    applied = answer.settings;
    const [channels, height, width] = answer.input;
    $("network").textContent =
      `${answer.classes.length} classes, ${width} × ${height} ${channels === 1 ? "grey" : "colour"}, ${answer.precision}`;
  } catch (error) {
    $("network").textContent = "";
    if (applied) choose(applied);
    throw error;
  }
}

async function changed() {
  try {
    say("");
    await apply((message) => link.ask(message));
    if (still && !stream) await look(still);
  } catch (error) {
    say(error.message);
  }
}

// Pictures

async function take(file) {
  stop();
  if (!file) return;
  if (file.size > limits.bytes) {
    say(`The picture has ${(file.size / 2 ** 20).toFixed(0)} MiB, the server takes ${(limits.bytes / 2 ** 20).toFixed(0)}.`);
    return;
  }
  const number = ++latest;
  try {
    const source = await createImageBitmap(file).catch(() => null);
    const next = { bytes: await file.arrayBuffer(), source, number };
    if (number !== latest) return;
    still = next;
    await apply((message) => link.ask(message));
    await look(still);
  } catch (error) {
    say(error.message);
  }
}

async function look(picture) {
  say("");
  const answer = await link.ask(picture.bytes);
  if (picture.number === latest) show(picture.source, answer, false);
}

// Camera: one frame is on its way at a time, the next one leaves when the answer is here.

async function openCamera() {
  if (stream) {
    stop();
    return;
  }
  try {
    say("");
    if (!navigator.mediaDevices) throw new Error("Browsers open a camera on localhost or over https only.");
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, height: { ideal: 720 } } });
    const mine = stream;
    latest += 1;
    still = null;
    $("camera").textContent = "Close the camera";
    $("mirror-label").hidden = false;
    const video = document.createElement("video");
    video.muted = video.playsInline = true;
    video.srcObject = mine;
    await video.play();
    mine.getVideoTracks()[0].addEventListener("ended", () => mine === stream && fail(new Error("The camera stopped.")));
    await link.open();
    await apply((message) => link.ask(message));
    await watch(video, mine);
  } catch (error) {
    fail(error);
  }
}

async function watch(video, mine) {
  let rate = 0;
  let before = performance.now();
  while (mine === stream) {
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    const frame = new OffscreenCanvas(Math.round(video.videoWidth * scale), Math.round(video.videoHeight * scale));
    frame.getContext("2d").drawImage(video, 0, 0, frame.width, frame.height);
    const blob = await frame.convertToBlob({ type: "image/jpeg", quality: 0.9 });
    const answer = await link.ask(await blob.arrayBuffer());
    if (mine !== stream) return;
    const now = performance.now();
    rate = rate ? 0.9 * rate + 100 / (now - before) : 1000 / (now - before);
    before = now;
    show(frame, answer, $("mirror").checked, rate);
    await next(video);
  }
}

// The camera's next frame; a hidden page gets none, and a second later looks again.
function next(video) {
  return new Promise((resolve) => {
    setTimeout(resolve, 1000);
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(resolve);
    else requestAnimationFrame(resolve);
  });
}

function stop() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  $("camera").textContent = "Open the camera";
  $("mirror-label").hidden = true;
}

function fail(error) {
  stop();
  const reasons = {
    NotAllowedError: "The browser does not allow the camera.",
    NotFoundError: "There is no camera.",
    NotReadableError: "The camera is in use by another program.",
  };
  say(reasons[error.name] || error.message);
}

// What came back

function show(source, answer, mirror, rate) {
  const selected = shown ? Math.min(shown.selected, Math.max(0, answer.faces.length - 1)) : 0;
  shown = { ...answer, source, mirror, selected };
  $("invite").hidden = true;
  $("canvas").hidden = $("save").hidden = false;
  const times = answer.milliseconds;
  for (const name of ["decode", "detect", "classify"]) $(name).textContent = milliseconds(times[name]);
  $("total").textContent = rate ? rate.toFixed(rate < 10 ? 1 : 0) : milliseconds(times.decode + times.detect + times.classify);
  $("total-name").textContent = rate ? "pictures/s" : "ms in all";
  render();
}

function milliseconds(value) {
  return value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0);
}

function render() {
  if (!shown) return;
  const room = { width: $("drop").clientWidth, height: Math.max(280, 0.66 * window.innerHeight) };
  boxes = draw($("canvas"), room, shown);
  const { faces, selected } = shown;
  const face = faces[selected];
  const more = shown.left_out ? `, ${shown.left_out} left out` : "";
  $("count").textContent = `${faces.length} ${faces.length === 1 ? "face" : "faces"}${more}`;
  $("label").textContent = face ? face.label : "No face found";
  chips(faces, selected);
  fill(face);
}

function chips(faces, selected) {
  const list = $("faces");
  if (faces.length < 2) {
    list.replaceChildren();
    return;
  }
  while (list.children.length > faces.length) list.lastChild.remove();
  faces.forEach((face, index) => {
    let button = list.children[index];
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => select(index));
      list.append(button);
    }
    button.textContent = `${face.track ? `#${face.track} ` : ""}${face.label}`;
    button.style.borderColor = colour(face.label, Object.keys(face.probabilities));
    button.setAttribute("aria-pressed", index === selected);
  });
}

// Rows are kept from one answer to the next, so that bars move.
function fill(face) {
  const list = $("bars");
  const entries = face ? Object.entries(face.probabilities) : [];
  const names = entries.map(([name]) => name).join("\n");
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    list.replaceChildren(...entries.flatMap(([name]) => {
      const text = document.createElement("span");
      text.textContent = name;
      const track = document.createElement("i");
      track.append(document.createElement("b"));
      return [text, track, document.createElement("output")];
    }));
  }
  entries.forEach(([name, value], index) => {
    const [text, track, number] = [0, 1, 2].map((part) => list.children[3 * index + part]);
    text.className = name === face.label ? "best" : "";
    track.firstChild.style.width = `${100 * value}%`;
    track.firstChild.style.background = colour(name, entries.map(([one]) => one));
    number.textContent = percent(value);
  });
}

function select(index) {
  shown.selected = index;
  render();
}

// Events

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  take($("file").files[0]);
  $("file").value = "";
});
$("camera").addEventListener("click", openCamera);
$("mirror").addEventListener("change", render);
$("weights").addEventListener("change", () => {
  listPrecisions();
  changed();
});
for (const id of ["precision", "faces-mode", "smooth"]) $(id).addEventListener("change", changed);
$("canvas").addEventListener("click", ({ offsetX, offsetY }) => {
  const hit = boxes.findIndex(({ x, y, width, height }) => offsetX >= x && offsetX <= x + width && offsetY >= y && offsetY <= y + height);
  if (hit >= 0) select(hit);
});
$("save").addEventListener("click", () => {
  $("canvas").toBlob((blob) => {
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(blob);
    anchor.download = "fastfer.png";
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
  });
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) take(file);
  else say("Drop a file: pictures of other pages are not fetched.");
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) take(file);
});
window.addEventListener("resize", render);
link.open().catch((error) => say(error.message));
