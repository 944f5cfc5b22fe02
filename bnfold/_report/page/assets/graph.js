/* The networks as data: who belongs to what, what became of each, and where everything stands. */

/**
 * @typedef {{gone: number[], names: string[], into: number|null, target: string, crossed: number[],
 *   laws: string[], kind: string, graph: string, ranges: (number|null)[][], state: string,
 *   ulps: number|null, probe: number|null, problem: string}} Fold
 * @typedef {{node: number|null, name: string, op: string, at: number|null, code: string,
 *   meaning: string, brief: string, message: string, advice: string, kind: string, graph: string}} Kept
 * @typedef {{x: number, y: number, w: number, h: number}} Box
 * @typedef {{gone: number, into: number, kept: number, wrong: number, before: number,
 *   after: number, ops: Map<number, number>}} Sum
 */

/** @type {any} */
const data = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("data")).textContent || "");
/** @type {Fold[]} */
const folds = data.folds;
/** @type {Kept[]} */
const keeps = data.kept;
const BEFORE = 1, AFTER = 2;
/** A number as people write it. @param {number} n */
const grouped = (n) => n.toLocaleString("en");
const count = data.nodes.length;
/** An operator has its number; a group has ~number. */
/** @type {(n: number) => string} */
const opOf = (n) => data.ops[data.nodes[n][0]];
/** @type {(n: number) => string} */
const nameOf = (n) => data.nodes[n][1];
/** @type {(n: number) => number} */
const sideOf = (n) => data.nodes[n][2];
/** @type {(n: number) => boolean} */
const isPort = (n) => opOf(n) === "input" || opOf(n) === "output";

/** By operator the group that holds it. @type {number[]} */
const owner = new Array(count).fill(0);
/** @type {number[]} */
const depth = new Array(data.groups.length).fill(0);
data.groups.forEach((/** @type {any} */ group, /** @type {number} */ g) => {
  for (const child of group[2]) if (child >= 0) owner[child] = g;
});
/** Groups, each behind the one that holds it. */
const outward = [0];
for (const g of outward) {
  for (const child of data.groups[g][2]) {
    if (child < 0) { depth[~child] = depth[g] + 1; outward.push(~child); }
  }
}
/** @type {(item: number) => number} */
const around = (item) => (item >= 0 ? owner[item] : data.groups[~item][1]);

/** By operator what became of it: gone, new, kept, into, or nothing. @type {string[]} */
const fate = new Array(count).fill("");
/** @type {Map<number, Fold[]>} */
const foldsFrom = new Map();
/** @type {Map<number, Fold[]>} */
const foldsInto = new Map();
/** @type {Map<number, Kept>} */
const keptAt = new Map();
/** @type {Map<number, number[]>} */
const stoppedAt = new Map();

/** @template K, V @param {Map<K, V[]>} map @param {K} key @param {V} value */
function add(map, key, value) {
  const found = map.get(key);
  if (found) found.push(value); else map.set(key, [value]);
}

for (const fold of folds) {
  for (const n of fold.gone) add(foldsFrom, n, fold);
  if (fold.into !== null) { add(foldsInto, fold.into, fold); fate[fold.into] = "into"; }
}
/** Operators that a step behind the fold gave other weights. @type {Set<number>} */
const altered = new Set(data.altered || []);
for (const n of [...data.changed || [], ...altered]) fate[n] = "into";
for (const kept of keeps) {
  if (kept.node === null) continue;
  if (kept.kind === "map" || !keptAt.has(kept.node)) keptAt.set(kept.node, kept);
  if (kept.kind === "map") {
    fate[kept.node] = "kept";
    if (kept.at !== null && kept.at !== kept.node) add(stoppedAt, kept.at, kept.node);
  }
}
/** By operator that is gone what stays of it. @type {Map<number, number>} */
const restOf = new Map();
/* Of maps that became one, what stays stands in the place of one of them. */
for (const [n, kept] of [...keptAt]) {
  if (kept.kind !== "map" || sideOf(n) !== BEFORE) continue;
  for (const fold of foldsFrom.get(n) || []) {
    const rest = fold.gone.find((other) => sideOf(other) === (BEFORE | AFTER));
    if (rest === undefined) continue;
    restOf.set(n, rest);
    if (!keptAt.has(rest)) { keptAt.set(rest, kept); fate[rest] = "kept"; }
  }
}
for (let n = 0; n < count; n++) {
  if (sideOf(n) === BEFORE) fate[n] = "gone";
  if (sideOf(n) === AFTER) fate[n] = "new";
}
/** Operators to suspect. @type {Set<number>} */
const wrong = new Set();
if (data.divergence) {
  if (data.divergence.at !== null) wrong.add(data.divergence.at);
  for (const [, n] of data.divergence.suspects) if (n !== null) wrong.add(n);
}
if (data.proof && data.proof.node !== null && (data.proof.status === "refuted" || data.head.status !== "pass" && data.proof.status !== "proved")) wrong.add(data.proof.node);
for (const fold of folds) if (fold.state === "fails" && fold.into !== null) wrong.add(fold.into);

/** By group what is in it, at any depth. @type {Sum[]} */
const sums = data.groups.map(() => ({ gone: 0, into: 0, kept: 0, wrong: 0, before: 0, after: 0, ops: new Map() }));
for (const g of [...outward].reverse()) {
  const sum = sums[g];
  for (const child of data.groups[g][2]) {
    if (child < 0) {
      const inner = sums[~child];
      for (const key of /** @type {("gone"|"into"|"kept"|"wrong"|"before"|"after")[]} */ (["gone", "into", "kept", "wrong", "before", "after"])) sum[key] += inner[key];
      for (const [op, n] of inner.ops) sum.ops.set(op, (sum.ops.get(op) || 0) + n);
    } else {
      if (wrong.has(child)) sum.wrong++;
      if (isPort(child)) continue;
      const what = fate[child];
      if (what === "gone" || what === "into" || what === "kept") sum[what]++;
      if (sideOf(child) & BEFORE) sum.before++;
      if (sideOf(child) & AFTER) sum.after++;
      sum.ops.set(data.nodes[child][0], (sum.ops.get(data.nodes[child][0]) || 0) + 1);
    }
  }
}
const LINEAR = /(^|::)(\w*Conv\w*|Gemm|\w*MatMul\w*|LSTM|GRU|RNN|\w*Attention\w*)$/;
const PLAIN = /(^|::)(Identity|Reshape|Shape|Slice|Gather|Unsqueeze|Squeeze|Cast|Constant\w*|Concat|Dropout)$/;
/** What to call a group. @type {(g: number) => string} */
function titleOf(g) {
  const name = data.groups[g][0], parent = data.groups[g][1];
  if (name) return /^\d+$/.test(name) && parent > 0 && data.groups[parent][0] ? `${data.groups[parent][0]}.${name}` : name;
  const inside = data.groups[g][2].map((/** @type {number} */ child) => (child < 0 && data.groups[~child][0] ? titleOf(~child) : ""));
  if (inside.length > 1 && inside.every(Boolean)) return `${inside[0]} … ${inside[inside.length - 1]}`;
  const rank = (/** @type {number} */ op) => (LINEAR.test(data.ops[op]) ? 2 : PLAIN.test(data.ops[op]) ? 0 : 1);
  const most = [...sums[g].ops].sort((a, b) => rank(b[0]) - rank(a[0]) || b[1] - a[1]).slice(0, 2);
  return most.map(([op, n]) => (n > 1 ? `${n} ${data.ops[op]}` : data.ops[op])).join(", ");
}

const pen = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
/** A title that fits, cut at its end or in its middle. @param {string} text @param {number} room @param {boolean} middle */
function fitting(text, room, middle) {
  pen.font = `600 12.5px ${getComputedStyle(document.body).fontFamily}`;
  let shorter = text;
  for (let most = text.length - 1; most > 3 && pen.measureText(shorter).width > room; most--) shorter = middle ? cut(text, most) : `${text.slice(0, most - 1).trimEnd()}…`;
  return shorter;
}
/** Sizes of a tensor; long expressions are left out. @param {string} shape */
const sizes = (shape) => shape.split("×").map((size) => (size.length > 10 ? "?" : size)).join("×");

const W = 176, H = 36, PORT = 24, GROUP_W = 196, GROUP_H = 46, BESIDE = 22, BELOW = 26, PAD = 12, TITLE = 26, BEND = 14;
/** Groups that are open. The outermost always is. @type {Set<number>} */
const opened = new Set([0]);
/** By item, where it stands; only what is seen has a place. @type {Map<number, Box>} */
let boxes = new Map();
/** By group and two of its children, what an edge between them passes. @type {Map<string, {x: number, y: number}[]>} */
let bends = new Map();
/** @type {Map<number, {w: number, h: number, at: Map<number, Box>, bends: Map<string, {x: number, y: number}[]>}>} */
const inner = new Map();

/** Middles in an order, as near as possible to where they want to be, and far enough apart.
 * It is the isotonic regression of the wishes, by merging neighbours that would collide.
 * @param {number[]} wishes @param {number[]} widths @param {number[]} weights */
function spaced(wishes, widths, weights) {
  /** @type {{sum: number, weight: number, size: number}[]} */
  const blocks = [];
  const offsets = [0];
  for (let k = 1; k < wishes.length; k++) offsets.push(offsets[k - 1] + (widths[k - 1] + widths[k]) / 2 + BESIDE);
  wishes.forEach((wish, k) => {
    blocks.push({ sum: (wish - offsets[k]) * weights[k], weight: weights[k], size: 1 });
    while (blocks.length > 1) {
      const [a, b] = blocks.slice(-2);
      if (a.sum / a.weight <= b.sum / b.weight) break;
      blocks.splice(-2, 2, { sum: a.sum + b.sum, weight: a.weight + b.weight, size: a.size + b.size });
    }
  });
  /** @type {number[]} */
  const found = [];
  for (const block of blocks) for (let k = 0; k < block.size; k++) found.push(block.sum / block.weight + offsets[found.length]);
  return found;
}

/** The inside of an open group. @param {number} g */
function arrange(g) {
  const known = inner.get(g);
  if (known) return known;
  const [, , children, places, links] = data.groups[g];
  /** @type {{layer: number, x: number, w: number, h: number, next: number[], prev: number[], weight: number}[]} */
  const cells = children.map((/** @type {number} */ child, /** @type {number} */ k) => {
    let w = W, h = H;
    if (child < 0) {
      [w, h] = [GROUP_W, GROUP_H];
      if (opened.has(~child)) {
        const open = arrange(~child);
        [w, h] = [Math.max(open.w + 2 * PAD, 110), open.h + TITLE + PAD];
      }
    } else if (isPort(child)) h = PORT;
    return { layer: places[k][0], x: places[k][1] * (W + BESIDE), w, h, next: [], prev: [], weight: 1 };
  });
  /** @type {[number, number, number[]][]} */
  const ways = [];
  const link = (/** @type {number} */ a, /** @type {number} */ b) => { cells[a].next.push(b); cells[b].prev.push(a); };
  for (const [a, b, way] of links) {
    let last = a;
    /** @type {number[]} */
    const passed = [];
    for (const [layer, x] of way) {
      const cell = cells.push({ layer, x: x * (W + BESIDE), w: BEND, h: 0, next: [], prev: [], weight: 3 }) - 1;
      link(last, cell);
      passed.push(cell);
      last = cell;
    }
    link(last, b);
    if (way.length) ways.push([a, b, passed]);
  }
  /** @type {number[][]} */
  const layers = [];
  cells.forEach((cell, k) => (layers[cell.layer] ||= []).push(k));
  for (const layer of layers) layer.sort((a, b) => cells[a].x - cells[b].x);
  const settle = (/** @type {number[]} */ layer, /** @type {(k: number) => number} */ wish) => {
    const found = spaced(layer.map(wish), layer.map((k) => cells[k].w), layer.map((k) => cells[k].weight));
    layer.forEach((k, place) => { cells[k].x = found[place]; });
  };
  for (const layer of layers) settle(layer, (k) => cells[k].x);
  for (let sweep = 0; sweep < 8; sweep++) {
    const downwards = sweep % 2 === 0;
    for (const layer of downwards ? layers : [...layers].reverse()) {
      settle(layer, (k) => {
        const near = downwards ? cells[k].prev : cells[k].next;
        return near.length ? near.reduce((sum, n) => sum + cells[n].x, 0) / near.length : cells[k].x;
      });
    }
  }
  const left = Math.min(...cells.map((cell) => cell.x - cell.w / 2));
  let y = 0;
  /** @type {Map<number, Box>} */
  const at = new Map();
  const middles = layers.map((layer) => {
    const tall = Math.max(...layer.map((k) => cells[k].h));
    for (const k of layer) if (k < children.length) at.set(children[k], { x: cells[k].x - cells[k].w / 2 - left, y: y + (tall - cells[k].h) / 2, w: cells[k].w, h: cells[k].h });
    y += tall + BELOW;
    return [y - BELOW - tall, y - BELOW];
  });
  const passes = new Map(ways.map(([a, b, way]) => [
    `${children[a]},${children[b]}`,
    way.flatMap((k) => middles[cells[k].layer].map((height) => ({ x: cells[k].x - left, y: height }))),
  ]));
  const made = { w: Math.max(...cells.map((cell) => cell.x + cell.w / 2)) - left, h: y - BELOW, at, bends: passes };
  inner.set(g, made);
  return made;
}

/** Lay out everything that is seen, from scratch. Only groups whose inside changed are arranged anew. */
function place() {
  boxes = new Map();
  bends = new Map();
  /** @type {[number, number, number][]} */
  const waiting = [[0, 0, 0]];
  for (const [g, x, y] of waiting) {
    const found = arrange(g);
    for (const [child, box] of found.at) {
      boxes.set(child, { ...box, x: box.x + x, y: box.y + y });
      if (child < 0 && opened.has(~child)) {
        const free = box.w - 2 * PAD - arrange(~child).w;
        waiting.push([~child, x + box.x + PAD + free / 2, y + box.y + TITLE]);
      }
    }
    for (const [key, way] of found.bends) bends.set(key, way.map((p) => ({ x: p.x + x, y: p.y + y })));
  }
  return arrange(0);
}

/** Forget how a group and those around it were arranged. @param {number} g */
function disturb(g) {
  for (let at = g; at >= 0; at = data.groups[at][1]) inner.delete(at);
}

/** What is seen of an item: itself, or the outermost closed group that holds it. @param {number} item */
function shown(item) {
  let seen = item;
  for (let g = around(item); g > 0; g = data.groups[g][1]) if (!opened.has(g)) seen = ~g;
  return seen;
}

/** Open all groups around an item; whether any was closed. @param {number} item */
function reveal(item) {
  let changed = false;
  for (let g = around(item); g > 0; g = data.groups[g][1]) {
    if (!opened.has(g)) { opened.add(g); disturb(g); changed = true; }
  }
  return changed;
}

/** Open groups from the input on, until so many items are seen. @param {number} most */
function openFirst(most) {
  let seen = data.groups[0][2].length;
  const waiting = [0];
  while (waiting.length) {
    const g = /** @type {number} */ (waiting.shift());
    const inside = data.groups[g][2].filter((/** @type {number} */ child) => child < 0).map((/** @type {number} */ child) => ~child);
    for (const one of inside) {
      const size = data.groups[one][2].length;
      if (seen + size > most && opened.size > 1) return;
      opened.add(one);
      seen += size;
      waiting.push(one);
    }
  }
}

/** The edges that are seen, each once. The points are where it runs.
 * @returns {{from: number, to: number, side: number, points: {x: number, y: number}[], fresh: boolean}[]} */
function visibleEdges() {
  const found = new Map();
  for (const [a, b, side, way] of data.edges) {
    const from = shown(a), to = shown(b);
    if (from === to) continue;
    const key = `${from},${to},${side === AFTER && way.length ? "way" : ""}`;
    const known = found.get(key);
    if (known) { known.side |= side; continue; }
    const start = /** @type {Box} */ (boxes.get(from)), end = /** @type {Box} */ (boxes.get(to));
    const points = [{ x: start.x + start.w / 2, y: start.y + start.h }];
    if (way.length) {
      let last = from;
      for (const n of way) {
        const item = shown(n);
        if (item === last || item === to || item === from) continue;
        last = item;
        const box = /** @type {Box} */ (boxes.get(item));
        points.push({ x: box.x + box.w / 2, y: box.y }, { x: box.x + box.w / 2, y: box.y + box.h });
      }
    } else points.push(...between(a, b));
    points.push({ x: end.x + end.w / 2, y: end.y });
    found.set(key, { from, to, side, points, fresh: side === AFTER && !way.length });
  }
  return [...found.values()];
}

/** What an edge passes in the innermost group that holds both of its ends. @param {number} a @param {number} b */
function between(a, b) {
  let ga = around(a), gb = around(b);
  while (depth[ga] > depth[gb]) { a = ~ga; ga = around(a); }
  while (depth[gb] > depth[ga]) { b = ~gb; gb = around(b); }
  while (ga !== gb) { a = ~ga; ga = around(a); b = ~gb; gb = around(b); }
  return bends.get(`${a},${b}`) || [];
}
