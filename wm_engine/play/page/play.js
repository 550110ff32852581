// The page's one script: it tells the server what is held and chosen, and shows what it is told.

const at = (id) => document.getElementById(id);
const GLYPHS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
const SWEEP_SECONDS = 0.2; // how long a held key takes from one end of an action to the other
const ACTIONS_PER_SECOND = 30;

let socket = null;
let controls = null;
let driving = "controller";
let action = []; // the visitor's
let chosen = -1; // of discrete actions: the button pressed last
const held = new Map(); // what holds a button (a key, a finger) -> the button
const arrivals = []; // of the last second's pictures

// Telling

function tell(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function sit(who) {
  if (who === driving) return;
  driving = who;
  if (who === "controller") held.clear();
  for (const name of ["controller", "you"]) at(name).setAttribute("aria-pressed", String(name === who));
  action = [...controls.idle];
  chosen = -1;
  tell({ type: "wheel", who });
}

function press(holder, button) {
  sit("you");
  held.set(holder, button);
  chosen = button.index;
  steer();
}

function release(holder) {
  if (held.delete(holder)) steer();
}

function target() {
  const buttons = [...held.values()];
  if (controls.one_hot) {
    const index = buttons.length ? buttons.at(-1).index : controls.stays ? chosen : -1;
    return index < 0 ? controls.idle : controls.idle.map((_, place) => Number(place === index));
  }
  // Of two ways held at once, the one pressed last counts.
  return controls.idle.map((idle, index) => buttons.findLast((button) => button.index === index)?.value ?? idle);
}

function steer() {
  if (controls === null || driving !== "you") return;
  const wanted = target();
  const next = wanted.map((value, index) => {
    if (controls.one_hot) return value;
    const most = (controls.high[index] - controls.low[index]) / (SWEEP_SECONDS * ACTIONS_PER_SECOND);
    return action[index] + Math.max(-most, Math.min(most, value - action[index]));
  });
  if (next.some((value, index) => value !== action[index])) {
    action = next;
    tell({ type: "act", action });
  }
}

function toggle(id, type) {
  const on = at(id).getAttribute("aria-pressed") !== "true";
  at(id).setAttribute("aria-pressed", String(on));
  tell({ type, on });
}

function begin(where) {
  note("");
  tell({ type: "begin", where });
}

// Showing

function draw(canvas, { shape: [height, width], data }) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const pixels = new Uint8ClampedArray(width * height * 4);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
    pixels[to] = data[from];
    pixels[to + 1] = data[from + 1];
    pixels[to + 2] = data[from + 2];
    pixels[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

function note(text) {
  at("note").textContent = text;
}

function veil(text) {
  at("dream-veil").hidden = !text;
  at("dream-veil").firstElementChild.textContent = text;
}

const shown = {
  welcome(told) {
    controls = told.controls;
    action = [...controls.idle];
    const score = told.score ? ` · its controller scores ${told.score.mean.toFixed(0)} ± ${told.score.std.toFixed(0)} for real` : "";
    at("about").textContent = `${told.run} · ${told.task} · ${told.episodes.toLocaleString("en")} recorded episodes${score}`;
    at("temperature").max = Math.max(2, told.temperature);
    at("temperature").value = told.temperature;
    at("temperature-shown").textContent = told.temperature.toFixed(2);
    at("show-road").disabled = told.noRoad !== null;
    at("show-road").title = told.noRoad ?? "the real environment, under the same actions";
    makePad();
    makeMeters();
  },
  begun(told) {
    veil("");
    for (const name of ["episode", "step", "seed"]) at(name).value = told[name];
    at("step").title = `0 to ${told.steps - 1}`;
  },
  picture(told, parts) {
    draw(at("dream"), parts[0]);
    const beside = parts.length > 1;
    at("road-figure").hidden = !beside;
    at("stage").classList.toggle("two", beside);
    if (beside) {
      draw(at("road"), parts[1]);
      at("road-total").textContent = told.roadTotal.toFixed(1);
      at("road-veil").hidden = !told.roadEnded;
    }
    at("total").textContent = (told.total ?? NaN).toFixed(1);
    at("reward").textContent = (told.reward ?? NaN).toFixed(2);
    at("end").textContent = `${(100 * told.end).toFixed(0)} %`;
    at("steps").textContent = told.steps;
    showAction(told.action);
    if (told.note) note(told.note);
    if (told.ended) veil("The dream ends here.");
    const now = performance.now();
    arrivals.push(now);
    while (arrivals[0] < now - 1000) arrivals.shift();
  },
  thumbnails(told, parts) {
    const tiles = parts.map((picture, index) => {
      const { episode, step } = told.places[index];
      const tile = document.createElement("button");
      const canvas = document.createElement("canvas");
      draw(canvas, picture);
      tile.append(canvas, `${episode} · ${step}`);
      tile.title = `episode ${episode}, step ${step}`;
      tile.onclick = () => {
        note("");
        tell({ type: "begin_at", episode, step });
      };
      return tile;
    });
    at("thumbnails").replaceChildren(...tiles);
    at("more").textContent = "Show other moments";
  },
  film(told, parts) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([parts[0].data], { type: "video/mp4" }));
    link.download = told.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    note(`Recorded: ${told.name}, ${told.pictures} pictures.`);
  },
  note(told) {
    note(told.text);
  },
  refused(told) {
    note(told.text);
    if (["road", "record"].includes(told.of)) at(told.of === "road" ? "show-road" : "record").setAttribute("aria-pressed", "false");
  },
};

function showAction(taken) {
  for (const key of document.querySelectorAll(".key")) {
    const button = controls.buttons[Number(key.dataset.place)];
    key.classList.toggle("held", controls.one_hot ? taken[button.index] > 0.5 : [...held.values()].includes(button));
  }
  document.querySelectorAll(".meter").forEach((meter, index) => {
    const [low, high, idle] = [controls.low[index], controls.high[index], controls.idle[index]];
    const share = (value) => (100 * (Math.max(low, Math.min(high, value)) - low)) / (high - low);
    const [from, to] = [share(idle), share(taken[index])];
    const bar = meter.querySelector("i");
    bar.style.left = `${Math.min(from, to)}%`;
    bar.style.width = `${Math.abs(to - from)}%`;
    meter.querySelector("output").textContent = taken[index].toFixed(2);
  });
}

function makePad() {
  at("pad").replaceChildren(
    ...controls.buttons.map((button, place) => {
      const key = document.createElement("button");
      key.className = "key";
      key.dataset.place = place;
      const glyph = document.createElement("span");
      const name = (code) => GLYPHS[code] ?? code.replace(/^(Key|Digit)/, "");
      glyph.textContent = button.keys.length ? name(button.keys[0]) : "•";
      const label = document.createElement("small");
      label.textContent = button.label;
      key.append(glyph, label);
      key.onpointerdown = (event) => {
        key.setPointerCapture(event.pointerId);
        press(`pointer ${event.pointerId}`, button);
      };
      key.onpointerup = key.onpointercancel = (event) => release(`pointer ${event.pointerId}`);
      key.oncontextmenu = (event) => event.preventDefault();
      return key;
    }),
  );
}

function makeMeters() {
  const names = controls.one_hot ? [] : controls.names;
  at("meters").replaceChildren(
    ...names.map((name) => {
      const meter = document.createElement("div");
      meter.className = "meter";
      const label = document.createElement("span");
      label.textContent = name;
      const bar = document.createElement("div");
      bar.className = "bar";
      bar.append(document.createElement("i"));
      meter.append(label, bar, document.createElement("output"));
      return meter;
    }),
  );
}

// The connection

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let offset = 4 + length;
  const parts = told.parts.map(({ bytes, shape }) => {
    const data = new Uint8Array(buffer, offset, bytes);
    offset += bytes;
    return { data, shape };
  });
  return [told, parts];
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/dream`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    const [told, parts] = unpack(data);
    shown[told.type]?.(told, parts);
  };
  socket.onclose = ({ reason }) => {
    veil("");
    const again = document.createElement("button");
    again.textContent = "Connect again";
    again.onclick = () => location.reload();
    at("note").replaceChildren(`The connection has ended${reason ? `: ${reason}` : ""}. `, again);
  };
}

// What is pressed

document.addEventListener("keydown", (event) => {
  if (controls === null || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target instanceof HTMLInputElement) return; // a number is typed, or the slider moved
  const button = controls.buttons.find((one) => one.keys.includes(event.code));
  const others = {
    Space: () => toggle("pause", "pause"),
    KeyR: () => begin("again"),
    KeyN: () => begin("anywhere"),
    KeyC: () => sit("controller"),
  };
  if (!button && (!others[event.code] || (event.code === "Space" && event.target instanceof HTMLButtonElement))) return;
  event.preventDefault();
  if (event.repeat) return;
  if (button) press(event.code, button);
  else others[event.code]();
});
// What a pointer has pressed lets go of the keyboard, which is for driving; what Tab has reached keeps it.
document.addEventListener("click", (event) => {
  if (event.detail > 0) event.target.closest?.("button, input[type=range]")?.blur();
});
document.addEventListener("keyup", (event) => release(event.code));
window.addEventListener("blur", () => {
  held.clear();
  steer();
});
document.addEventListener("visibilitychange", () => {
  const paused = at("pause").getAttribute("aria-pressed") === "true";
  tell({ type: "pause", on: document.hidden || paused }); // nobody looks: nothing is dreamt
});

at("controller").onclick = () => sit("controller");
at("you").onclick = () => sit("you");
at("pause").onclick = () => toggle("pause", "pause");
at("record").onclick = () => toggle("record", "record");
at("show-road").onclick = () => {
  note("");
  toggle("show-road", "road");
  if (at("show-road").getAttribute("aria-pressed") !== "true") {
    at("road-figure").hidden = true;
    at("stage").classList.remove("two");
  }
};
for (const where of ["again", "beginning", "anywhere"]) at(where).onclick = () => begin(where);
at("numbers").onsubmit = (event) => {
  event.preventDefault();
  note("");
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  tell({ type: "begin_at", episode: number("episode") ?? 0, step: number("step") ?? 0, seed: number("seed") });
};
at("more").onclick = () => tell({ type: "thumbnails" });
at("temperature").oninput = () => {
  const value = Number(at("temperature").value);
  at("temperature-shown").textContent = value.toFixed(2);
  tell({ type: "temperature", value });
};

setInterval(steer, 1000 / ACTIONS_PER_SECOND);
setInterval(() => {
  const now = performance.now();
  at("rate").textContent = arrivals.length && now - arrivals.at(-1) < 1000 ? String(arrivals.length) : "–";
}, 500);
connect();
