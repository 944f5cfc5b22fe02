/* The picture: two panes with one view, drawn as far as they are in view. */

const SVG = "http://www.w3.org/2000/svg";
/** @param {string} tag @param {Record<string, string|number>} [given] @param {(Node|string)[]} children */
function svg(tag, given = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}
/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/** What is in view: the picture's point in the corner, and how large it is drawn. */
const view = { x: 0, y: 0, k: 1 };
const SMALLEST = 0.04, LARGEST = 2.5, LEGIBLE = 0.42, CROWD = 900;
let whole = { w: 1, h: 1 };
/** @type {number|null} */
let chosen = null;
/** @type {number|null} */
let hovered = null;
/** @type {Set<number>} */
let found = new Set();
/** @type {ReturnType<typeof visibleEdges>} */
let edges = [];
/** What was drawn last, and for which part of the picture. */
let drawn = { left: 0, right: 0, top: 0, bottom: 0, k: 0 };

const panes = /** @type {{svg: SVGSVGElement, layer: SVGGElement, side: number}[]} */ ([BEFORE, AFTER].map((side) => {
  const host = byId(side === BEFORE ? "before" : "after"), layer = svg("g");
  const tip = (/** @type {string} */ kind) => svg("marker", { id: `tip-${kind}`, viewBox: "0 0 10 10", refX: 8, refY: 5, markerWidth: 5, markerHeight: 5, orient: "auto-start-reverse" }, svg("path", { d: "M0 0L10 5L0 10z", class: `tip-${kind}` }));
  if (side === BEFORE) host.append(svg("defs", {}, tip("gone"), tip("kept")));
  host.append(layer);
  return { svg: host, layer, side };
}));
const size = () => ({ w: panes[0].svg.clientWidth || 1, h: panes[0].svg.clientHeight || 1 });

/** Texts are cut in the middle: names differ at their ends. @param {string} text @param {number} most */
const cut = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.floor(most * 0.3))}…${text.slice(-Math.ceil(most * 0.65))}`);
/** The last part of a name. @param {string} name */
const tail = (name) => name.replace(/\/+$/, "").split("/").slice(-2).join("/") || name;
/** The last part that is not only the type. @param {number} n */
function short(n) {
  const parts = nameOf(n).split("/").filter(Boolean), op = opOf(n).replace(/^.*::/, "");
  while (parts.length > 1 && new RegExp(`^${op}(_\\d+)?$`).test(parts[parts.length - 1])) parts.pop();
  return parts.length ? parts[parts.length - 1] : nameOf(n);
}

/** Lay out again after groups have opened or closed. @param {number} [still] an item that keeps its place */
function replace(still) {
  const was = still === undefined ? undefined : boxes.get(still);
  whole = place();
  edges = visibleEdges();
  const is = still === undefined ? undefined : boxes.get(still);
  if (was && is) { view.x += is.x + is.w / 2 - was.x - was.w / 2; view.y += is.y - was.y; }
  drawn.k = 0;
  drawMap();
  draw();
}

/** Keep a part of the picture in view. */
function hold() {
  const { w, h } = size(), free = 40 / view.k, top = 46 / view.k;
  const fit = (/** @type {number} */ at, /** @type {number} */ length, /** @type {number} */ room, /** @type {number} */ before) =>
    length + before + free <= room ? (length - room) / 2 : Math.min(Math.max(at, -before), length + free - room);
  view.x = fit(view.x, whole.w, w / view.k, free);
  view.y = whole.h + top + free <= h / view.k ? -top : Math.min(Math.max(view.y, -top), whole.h + free - h / view.k);
}

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawNow(); });
}

function drawNow() {
  hold();
  const { w, h } = size();
  for (const pane of panes) pane.layer.setAttribute("transform", `scale(${view.k}) translate(${-view.x} ${-view.y})`);
  const seen = { left: view.x, right: view.x + w / view.k, top: view.y, bottom: view.y + h / view.k };
  if (drawn.k !== view.k || seen.left < drawn.left || seen.right > drawn.right || seen.top < drawn.top || seen.bottom > drawn.bottom) {
    const more = { x: w / view.k / 3, y: h / view.k / 2 };
    drawn = { left: seen.left - more.x, right: seen.right + more.x, top: seen.top - more.y, bottom: seen.bottom + more.y, k: view.k };
    const items = [];
    for (const [item, box] of boxes) {
      if (box.x < drawn.right && box.x + box.w > drawn.left && box.y < drawn.bottom && box.y + box.h > drawn.top) items.push(item);
    }
    for (const pane of panes) drawPane(pane, items);
  }
  showView();
}

/** What became of an item, as the name of a class. @param {number} item @param {number} side */
function classOf(item, side) {
  if (item < 0) return `group ${opened.has(~item) ? "open" : "closed"}${sums[~item].wrong ? " wrong" : ""}`;
  if (!(sideOf(item) & side)) return side === AFTER ? "ghost" : "";
  return `${isPort(item) ? "port" : fate[item]}${wrong.has(item) ? " wrong" : ""}`;
}
/** Whether a pane draws an item. @param {number} item @param {number} side */
function isIn(item, side) {
  if (item < 0) return side === BEFORE ? sums[~item].before > 0 || !sums[~item].after : true;
  return !!(sideOf(item) & side) || side === AFTER;
}

/** @param {typeof panes[0]} pane @param {number[]} items */
function drawPane(pane, items) {
  const parts = /** @type {Element[]} */ ([]);
  const bulk = view.k < LEGIBLE || items.length > CROWD;
  for (const item of items) if (item < 0 && opened.has(~item) && isIn(item, pane.side)) parts.push(drawItem(item, pane.side, bulk));
  const lines = edges.filter((edge) => edge.side & pane.side && crosses(edge.points));
  if (bulk) parts.push(svg("path", { class: "edge", d: lines.map((edge) => curve(edge.points)).join("") }));
  else {
    for (const edge of lines) {
      const kind = edge.fresh ? " fresh" : "";
      parts.push(svg("path", { class: `edge${kind}`, d: curve(edge.points) }));
    }
  }
  const plain = items.filter((item) => !(item < 0 && opened.has(~item)) && isIn(item, pane.side));
  if (bulk) {
    /** @type {Map<string, string[]>} */
    const paths = new Map();
    for (const item of plain) {
      const { x, y, w, h } = /** @type {Box} */ (boxes.get(item));
      add(paths, item < 0 && sums[~item].gone && pane.side === BEFORE ? "some" : classOf(item, pane.side) || "ops", `M${x} ${y}h${w}v${h}h${-w}z`);
    }
    for (const [kind, path] of paths) parts.push(svg("path", { class: `bulk ${kind}`, d: path.join("") }));
    for (const item of [chosen, hovered]) if (item !== null && boxes.has(shown(item))) parts.push(drawItem(shown(item), pane.side, false));
  } else for (const item of plain) parts.push(drawItem(item, pane.side, false));
  if (!bulk) for (const item of items) if (item < 0 && opened.has(~item) && isIn(item, pane.side)) parts.push(titleText(item, pane.side));
  parts.push(...flows(pane.side, bulk ? [] : plain));
  pane.layer.replaceChildren(...parts);
  const active = chosen !== null ? byId(`${pane.side}:${shown(chosen)}`) : null;
  if (active) pane.svg.setAttribute("aria-activedescendant", active.id); else pane.svg.removeAttribute("aria-activedescendant");
}

/** @param {{x: number, y: number}[]} points */
function crosses(points) {
  let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
  for (const { x, y } of points) { left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y); }
  return left <= drawn.right && right >= drawn.left && top <= drawn.bottom && bottom >= drawn.top;
}
/** A line that leaves and arrives upright. @param {{x: number, y: number}[]} points */
function curve(points) {
  let path = `M${points[0].x} ${points[0].y}`;
  for (let k = 1; k < points.length; k++) {
    const a = points[k - 1], b = points[k];
    if (Math.abs(a.x - b.x) < 0.5) path += `L${b.x} ${b.y}`;
    else { const middle = (a.y + b.y) / 2; path += `C${a.x} ${middle} ${b.x} ${middle} ${b.x} ${b.y}`; }
  }
  return path;
}

const SAID = /** @type {Record<string, string>} */ ({ gone: "gone in the folded network", into: "took in what went", kept: "stays, with a reason", new: "new in the folded network", ghost: "gone" });
/** @param {number} item @param {number} side @param {boolean} bare */
function drawItem(item, side, bare) {
  const box = /** @type {Box} */ (boxes.get(item)), kind = classOf(item, side);
  const state = `${item === (chosen === null ? null : shown(chosen)) ? " chosen" : ""}${found.has(item) && kind !== "ghost" ? " hit" : ""}${linked().passed.has(item) && kind !== "ghost" ? " passed" : ""}`;
  const made = svg("g", { class: `op ${kind}${state}`, id: `${side}:${item}`, transform: `translate(${box.x} ${box.y})`, "data-item": item });
  made.append(svg("rect", { width: box.w, height: box.h, rx: item < 0 ? 8 : 5 }));
  if (kind.startsWith("ghost")) { made.setAttribute("aria-hidden", "true"); return made; }
  made.setAttribute("role", "treeitem");
  if (bare) return made;
  if (item < 0) groupText(made, made, ~item, side, box);
  else {
    const op = isPort(item) ? nameOf(item) : opOf(item).replace(/^.*::/, "");
    made.setAttribute("aria-label", `${opOf(item)} ${nameOf(item)}${fate[item] ? `, ${SAID[fate[item]]}` : ""}`);
    made.append(svg("title", {}, `${opOf(item)}\n${nameOf(item)}${data.nodes[item][3] ? `\n${data.nodes[item][3]}` : ""}`));
    if (isPort(item)) made.append(svg("text", { class: "kind", x: box.w / 2, y: 16, "text-anchor": "middle" }, cut(`${op}  ${sizes(data.nodes[item][3])}`, 26)));
    else {
      made.append(svg("text", { class: "kind", x: 9, y: 15.5 }, cut(op, 20)), svg("text", { class: "name", x: 9, y: 29 }, cut(short(item), 27)));
      const badge = /** @type {Record<string, string>} */ ({ gone: "−", into: "+", new: "new", kept: "=" })[fate[item]];
      if (wrong.has(item)) made.append(svg("text", { class: "badge wrong", x: box.w - 8, y: 16, "text-anchor": "end" }, "✗"));
      else if (badge) made.append(svg("text", { class: `badge ${fate[item] === "new" ? "into" : fate[item]}`, x: box.w - 8, y: 16, "text-anchor": "end" }, badge));
    }
  }
  return made;
}

/** The title of an open group: it stands on top of the edges. @param {number} item @param {number} side */
function titleText(item, side) {
  const box = /** @type {Box} */ (boxes.get(item)), made = svg("g", { class: "op group title", "data-item": item, "aria-hidden": "true", transform: `translate(${box.x} ${box.y})` });
  groupText(svg("g"), made, ~item, side, box);
  return made;
}
/** @param {Element} owner what is named @param {Element} made where the text goes @param {number} g @param {number} side @param {Box} box */
function groupText(owner, made, g, side, box) {
  const sum = sums[g], open = opened.has(g), number = side === BEFORE ? sum.before : sum.after;
  const marks = [sum.gone && side === BEFORE ? ["gone", `−${grouped(sum.gone)}`] : null, sum.into ? ["into", `+${grouped(sum.into)}`] : null, sum.kept ? ["kept", `=${grouped(sum.kept)}`] : null].flatMap((mark) => (mark ? [mark] : []));
  owner.setAttribute("aria-expanded", String(open));
  owner.setAttribute("aria-level", String(depth[g]));
  owner.setAttribute("aria-label", `group ${titleOf(g)}, ${number} operators${sum.gone ? `, ${sum.gone} gone` : ""}${sum.kept ? `, ${sum.kept} kept` : ""}`);
  if (open && owner === made) return;
  made.append(svg("title", {}, `${pathOf(g)}\n${number} operators`));
  const taken = open ? marks.reduce((/** @type {number} */ sum, mark) => sum + 9 + 7 * mark[1].length, 0) : 0;
  const title = fitting(titleOf(g), box.w - 36 - taken, Boolean(data.groups[g][0]));
  made.append(svg("text", { class: "kind", x: 10, y: 18 }, `${open ? "▾" : "▸"} ${title}`));
  let right = box.w - 9;
  for (const [kind, text] of marks.reverse()) {
    made.append(svg("text", { class: `badge ${kind}`, x: right, y: open ? 17 : 35, "text-anchor": "end" }, text));
    right -= 9 + 7 * text.length;
  }
  if (!open) made.append(svg("text", { class: "name", x: 10, y: 35 }, `${grouped(number)} operators`));
}
/** @param {number} g */
function pathOf(g) {
  const parts = [];
  for (let at = g; at > 0; at = data.groups[at][1]) parts.unshift(titleOf(at));
  return parts.join(" / ");
}

/** What belongs to the chosen or hovered operator: from where to where, what was passed, what stopped it. */
function linked() {
  const focus = hovered ?? chosen;
  /** @type {[number, number, boolean][]} */
  const arrows = [];
  /** @type {Set<number>} */
  const passed = new Set();
  if (focus === null || focus < 0) return { arrows, passed };
  for (const fold of [...(foldsFrom.get(focus) || []), ...(foldsInto.get(focus) || [])]) {
    for (const n of fold.gone) if (fold.into !== null) arrows.push([n, fold.into, false]);
    for (const n of fold.crossed) passed.add(n);
  }
  const kept = keptAt.get(focus);
  if (kept && kept.at !== null && kept.at !== focus && !arrows.some(([, to]) => to === kept.at)) arrows.push([focus, kept.at, true]);
  return { arrows, passed };
}
/** Arrows for where maps went: of what is in view, faint; of what is chosen, strong.
 * @param {number} side @param {number[]} items */
function flows(side, items) {
  if (side !== BEFORE) return [];
  const strong = linked().arrows, chosenOnes = new Set(strong.map(([from, to]) => `${from},${to}`));
  /** @type {[number, number, boolean, boolean][]} */
  const all = [];
  for (const item of items) {
    for (const fold of foldsFrom.get(item) || []) if (fold.into !== null && fate[item] === "gone" && !chosenOnes.has(`${item},${fold.into}`)) all.push([item, fold.into, false, true]);
  }
  for (const [from, to, stops] of strong) all.push([from, to, stops, false]);
  return all.flatMap(([from, to, stops, faint]) => {
    const a = boxes.get(shown(from)), b = boxes.get(shown(to));
    if (!a || !b || a === b) return [];
    if (faint && Math.abs(a.y - b.y) > 500) return [];
    const ya = a.y + a.h / 2, yb = b.y + b.h / 2, out = Math.max(a.x + a.w, b.x + b.w) + 34;
    return [svg("path", { class: `flow${stops ? " stop" : ""}${faint ? " faint" : ""}`, d: `M${a.x + a.w} ${ya}C${out} ${ya} ${out} ${yb} ${b.x + b.w + 3} ${yb}` })];
  });
}

/** Show an item: open the groups around it, and move it into the middle. @param {number} item */
function goTo(item) {
  if (reveal(item)) replace();
  const box = boxes.get(shown(item));
  if (!box) return;
  const { w, h } = size();
  if (view.k < 0.7) view.k = 1;
  view.x = box.x + box.w / 2 - w / view.k / 2;
  view.y = box.y + box.h / 2 - h / view.k / 2.4;
  drawn.k = 0;
  draw();
}
/** @param {number|null} item @param {boolean} [move] */
function choose(item, move = false) {
  chosen = item;
  drawn.k = 0;
  if (item !== null && move) goTo(item); else draw();
  tell(item);
}
/** @param {number} g */
function toggle(g) {
  if (opened.has(g)) opened.delete(g); else opened.add(g);
  disturb(g);
  replace(~g);
}
/** @param {number} factor @param {number} [x] @param {number} [y] */
function zoom(factor, x = size().w / 2, y = size().h / 2) {
  const k = Math.min(Math.max(view.k * factor, SMALLEST), LARGEST);
  view.x += x / view.k - x / k;
  view.y += y / view.k - y / k;
  view.k = k;
  draw();
}
function fit() {
  const { w, h } = size();
  view.k = Math.max(Math.min((w - 40) / whole.w, (h - 90) / whole.h, 1.2), SMALLEST);
  draw();
}
/** The beginning, as large as it can be read. */
function home() {
  const { w, h } = size();
  const all = Math.min((w - 40) / whole.w, (h - 90) / whole.h);
  view.k = all > 0.62 ? Math.min(all, 1.25) : Math.min(Math.max((w - 36) / whole.w, 0.72), 1);
  const first = boxes.get(shown(0));
  view.x = first ? first.x + first.w / 2 - w / view.k / 2 : 0;
  view.y = -46 / view.k;
  draw();
}

/** A narrow map of the whole, at the left: where something happened, and what is in view. */
function drawMap() {
  const host = byId("map"), w = host.clientWidth || 26, h = host.clientHeight || 1, k = h / (whole.h || 1);
  /** @type {Map<string, string[]>} */
  const paths = new Map();
  for (const [item, box] of boxes) {
    if (item < 0 && opened.has(~item)) continue;
    const sum = item < 0 ? sums[~item] : null;
    const kind = sum ? (sum.wrong ? "wrong" : sum.kept ? "kept" : sum.gone ? "gone" : "ops") : classOf(item, BEFORE).split(" ").pop() || "ops";
    if (kind === "port") continue;
    const across = /** @type {Record<string, number>} */ ({ gone: 3, into: 11, new: 11, kept: 17, wrong: 3, ops: 3 })[kind] ?? 3;
    const tall = Math.max(Math.min(box.h * k, 8), 1.2), wide = kind === "ops" ? 3 : (w * 6) / 26;
    add(paths, kind, `M${(across * w) / 26} ${(box.y * k).toFixed(1)}h${wide.toFixed(1)}v${tall.toFixed(1)}h${(-wide).toFixed(1)}z`);
  }
  host.replaceChildren(...[...paths].map(([kind, path]) => svg("path", { class: `bulk ${kind}`, d: path.join("") })), svg("rect", { class: "view", width: w }));
}
function showView() {
  const host = byId("map"), rect = host.querySelector(".view"), k = (host.clientHeight || 1) / (whole.h || 1);
  if (!rect) return;
  rect.setAttribute("y", String(Math.max(view.y * k, 0)));
  rect.setAttribute("height", String(Math.max(Math.min(size().h / view.k, whole.h) * k, 3)));
}

/** @param {Event} event @returns {number|null} */
function itemAt(event) {
  const target = /** @type {Element} */ (event.target), part = target.closest("[data-item]");
  if (part) return Number(part.getAttribute("data-item"));
  if (view.k >= LEGIBLE && boxes.size <= CROWD || !(event instanceof MouseEvent)) return null;
  const host = /** @type {Element} */ (target.closest("svg")).getBoundingClientRect();
  const x = (event.clientX - host.left) / view.k + view.x, y = (event.clientY - host.top) / view.k + view.y;
  for (const [item, box] of boxes) {
    if (item < 0 && opened.has(~item)) continue;
    if (x >= box.x && x <= box.x + box.w && y >= box.y && y <= box.y + box.h) return item;
  }
  return null;
}

for (const pane of panes) {
  /** @type {{x: number, y: number, moved: boolean}|null} */
  let held = null;
  pane.svg.addEventListener("pointerdown", (event) => { if (event.button === 0) held = { x: event.clientX, y: event.clientY, moved: false }; });
  pane.svg.addEventListener("pointermove", (event) => {
    if (held && event.buttons & 1) {
      const dx = event.clientX - held.x, dy = event.clientY - held.y;
      if (!held.moved && Math.hypot(dx, dy) < 4) return;
      if (!held.moved) { pane.svg.setPointerCapture(event.pointerId); pane.svg.classList.add("drag"); }
      held = { x: event.clientX, y: event.clientY, moved: true };
      view.x -= dx / view.k;
      view.y -= dy / view.k;
      draw();
      return;
    }
    const item = itemAt(event);
    const next = item !== null && item >= 0 && (foldsFrom.has(item) || foldsInto.has(item) || keptAt.has(item)) ? item : null;
    if (next !== hovered) { hovered = next; drawn.k = 0; draw(); }
  });
  pane.svg.addEventListener("pointerleave", () => { if (hovered !== null) { hovered = null; drawn.k = 0; draw(); } });
  pane.svg.addEventListener("pointerup", (event) => {
    const moved = held && held.moved;
    held = null;
    pane.svg.classList.remove("drag");
    if (moved || event.button !== 0) return;
    const item = itemAt(event);
    if (item === null) choose(null);
    else if (item < 0) { toggle(~item); choose(item); } else choose(item);
  });
  pane.svg.addEventListener("wheel", (event) => {
    const host = pane.svg.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(Math.exp(-event.deltaY / 300), event.clientX - host.left, event.clientY - host.top); return; }
    const was = [view.x, view.y];
    view.x += event.deltaX / view.k;
    view.y += event.deltaY / view.k;
    hold();
    if (was[0] !== view.x || was[1] !== view.y) { event.preventDefault(); draw(); }
  }, { passive: false });
  pane.svg.addEventListener("keydown", (event) => {
    const order = () => [...boxes].filter(([item]) => isIn(item, pane.side) && !classOf(item, pane.side).startsWith("ghost")).sort((a, b) => a[1].y - b[1].y || a[1].x - b[1].x).map(([item]) => item);
    const at = chosen === null ? null : shown(chosen);
    const step = (/** @type {number} */ by) => { const all = order(), k = at === null ? -1 : all.indexOf(at); choose(all[Math.min(Math.max(k + by, 0), all.length - 1)], true); };
    if (event.key === "ArrowDown") step(1);
    else if (event.key === "ArrowUp") step(-1);
    else if (event.key === "ArrowRight" && at !== null) {
      if (at < 0) { if (!opened.has(~at)) toggle(~at); } else { const fold = (foldsFrom.get(at) || [])[0]; if (fold && fold.into !== null) choose(fold.into, true); }
    } else if (event.key === "ArrowLeft" && at !== null) {
      if (at < 0 && opened.has(~at)) toggle(~at); else if (around(at) > 0) choose(~around(at), true);
    } else if ((event.key === "Enter" || event.key === " ") && at !== null && at < 0) toggle(~at);
    else if (event.key === "Escape") choose(null);
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
}
byId("map").addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
  const host = byId("map"), box = host.getBoundingClientRect();
  const move = (/** @type {PointerEvent} */ at) => { view.y = ((at.clientY - box.top) / box.height) * whole.h - size().h / view.k / 2; draw(); };
  move(event);
  host.setPointerCapture(event.pointerId);
  host.onpointermove = move;
  host.onpointerup = () => { host.onpointermove = null; };
});
