/* The headline, and what stands below the picture: outputs, planted errors, layers, the table. */

const MARKS = /** @type {Record<string, string[]>} */ ({
  pass: ["✓", "Verified: the same function"], fail: ["✗", "Not the same function"], inconclusive: ["?", "Could not be judged"],
  unchanged: ["✓", "Nothing to fold"], skipped: ["?", "Folded, not verified"],
});
/** @param {number} size */
function bytes(size) {
  let unit = 0, value = size;
  while (value >= 999.5 && unit < 3) { value /= 1000; unit++; }
  return `${unit && value < 99.95 ? value.toFixed(value < 9.995 ? 2 : 1) : Math.round(value)} ${["B", "kB", "MB", "GB"][unit]}`;
}
/** @param {string} name @param {string} value @param {string} [small] */
const fact = (name, value, small) => html("div", {}, html("dt", {}, name), html("dd", {}, value, small ? html("small", {}, small) : null));

/** The name of a file without its folder. @param {string} path */
const fileOf = (path) => path.split(/[\\/]/).pop() || path;

function headline() {
  const { status, model, output, counts, seconds } = data.head, host = byId("head");
  const total = (/** @type {number} */ k) => counts.reduce((/** @type {number} */ sum, /** @type {any[]} */ row) => sum + row[k], 0);
  const proved = data.proof && data.proof.status === "proved";
  const [mark, words] = proved && status === "pass" ? ["✓", "Proved: the same function"] : MARKS[status] || ["?", status];
  host.className = status;
  const facts = html("dl", { id: "facts" }, fact("Operators", `${grouped(total(1))} → ${grouped(total(2))}`, total(1) === total(2) ? "" : `${total(2) - total(1) > 0 ? "+" : "−"}${grouped(Math.abs(total(2) - total(1)))}`));
  const norm = counts.find((/** @type {any[]} */ row) => row[0] === "BatchNormalization");
  if (norm) facts.append(fact("BatchNormalization", `${grouped(norm[1])} → ${grouped(norm[2])}`));
  if (data.head.bytes) facts.append(fact("Size", `${bytes(data.head.bytes[0])} → ${bytes(data.head.bytes[1])}`));
  if (data.proof) facts.append(fact("Proof", data.proof.status === "not proved" ? `${many(data.proof.layers.length, "layer")} so far` : proved ? `${many(data.proof.layers.length, "layer")} proved` : data.proof.status));
  if (data.certificates.length && !proved) facts.append(fact("Folds checked", `${data.certificates.filter((/** @type {any[]} */ each) => each[1] === "holds").length} of ${data.certificates.length}`));
  const far = data.checks.filter((/** @type {any} */ check) => check.ratio !== null).sort((/** @type {any} */ a, /** @type {any} */ b) => b.ratio - a.ratio)[0];
  if (far) facts.append(fact("Difference, allowed", figure(far.difference), `of ${figure(far.tolerance)}`));
  if (data.timing && !data.timing.note) facts.append(fact("Speed", data.timing.measurable ? `${data.timing.clock.toFixed(2)}×` : "no difference", `${data.timing.low.toFixed(2)} to ${data.timing.high.toFixed(2)}`));
  if (seconds !== null) facts.append(fact("Time", `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`));
  host.append(html("div", {}, html("h1", {}, html("span", { class: "mark", "aria-hidden": "true" }, mark), words), html("p", { class: "path", title: output ? `${model} → ${output}` : model }, output ? `${fileOf(model)} → ${fileOf(output)}` : fileOf(model))), facts);
  byId("label-before").append(html("b", {}, "Before"), many(total(1), "operator"));
  byId("label-after").append(html("b", {}, "After"), many(total(2), "operator"));
  const legend = byId("legend"), fates = new Set(fate);
  /** @param {string} kind @param {string} sign @param {string} text */
  const key = (kind, sign, text) => legend.append(html("span", {}, html("i", { class: kind, "aria-hidden": "true" }, sign), text));
  if (fates.has("gone")) key("gone", "−", "gone");
  if (fates.has("into")) key("into", "+", data.kind === "verify" ? "other weights" : "took it in");
  if (fates.has("new")) key("into", "n", "new");
  if (fates.has("kept")) key("kept", "=", "stays, with a reason");
  if (wrong.size) key("wrong", "✗", "differs");
}

/** @param {string} title @param {string} lead @param {(Node|null|false)[]} children */
function section(title, lead, ...children) {
  const id = `s-${title.toLowerCase().replace(/\W+/g, "-")}`;
  byId("sections").append(html("section", { "aria-labelledby": id }, html("h2", { id }, title), html("p", { class: "lead" }, lead), ...children));
}

const TENTHS = /** @type {Record<string, string>} */ ({ "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" });
/** @param {number} power */
const ten = (power) => `10${[...String(power)].map((digit) => TENTHS[digit]).join("")}`;

/** How many elements of an output differ by how much. @param {any} check */
function histogram(check) {
  const [same, first, counts] = check.spread;
  const line = check.tolerance > 0 ? 2 * Math.log10(check.tolerance) : null;
  const begin = Math.min(first, line === null ? first : Math.floor(line)) - 1, end = Math.max(first + counts.length, line === null ? 0 : Math.ceil(line) + 1);
  const w = 264, h = 88, high = 72, left = 40, wide = (w - left) / Math.max(end - begin, 6), most = Math.log10(1 + Math.max(...counts, same));
  const tall = (/** @type {number} */ n) => (Math.log10(1 + n) / most) * high;
  const made = svg("svg", { viewBox: `0 0 ${w} ${h + 18}`, role: "img", "aria-label": `${check.output} on ${check.inputs} inputs: ${many(same, "element")} equal, the largest difference ${figure(check.difference)}, tolerance ${figure(check.tolerance)}` });
  made.append(svg("line", { class: "base", x1: 0, x2: w, y1: h + 0.5, y2: h + 0.5 }));
  made.append(svg("rect", { class: "bar", x: 4, y: h - tall(same), width: 20, height: tall(same) }, svg("title", {}, `${many(same, "element")} equal`)), svg("text", { class: "axis", x: 14, y: h + 12, "text-anchor": "middle" }, "equal"));
  counts.forEach((/** @type {number} */ n, /** @type {number} */ k) => {
    if (!n) return;
    const over = line !== null && first + k >= line ? " over" : "";
    made.append(svg("rect", { class: `bar${over}`, x: left + (first + k - begin) * wide + 0.5, y: h - tall(n), width: Math.max(wide - 1, 1), height: tall(n) }, svg("title", {}, `${many(n, "element")} from ${(10 ** ((first + k) / 2)).toExponential(1)}`)));
  });
  const every = end - begin > 16 ? 4 : 2;
  for (let at = Math.ceil((begin + 1) / 2) * 2; at < end; at += every) made.append(svg("text", { class: "axis", x: left + (at - begin) * wide, y: h + 12, "text-anchor": "middle" }, ten(at / 2)));
  if (line !== null) {
    const x = left + (line - begin) * wide;
    made.append(svg("line", { class: "mark-line", x1: x, x2: x, y1: 12, y2: h }), svg("text", { class: "axis", x: x + 3, y: 9, "text-anchor": "end" }, "tolerance"));
  }
  return made;
}

/** @param {string} status */
const statusMark = (status) => html("span", { class: status === "pass" ? "good" : status === "fail" ? "bad" : "unsure" }, status === "pass" ? "✓ " : status === "fail" ? "✗ " : "? ");

/** Bars side by side, one for each layer.
 * @param {[string, string, number|null, number|null][]} bars @param {string} label @param {boolean} limited whether one unit is the most */
function strip(bars, label, limited) {
  const h = 64, w = 1000, wide = w / Math.max(bars.length, 24), most = Math.max(1.1, ...bars.map((bar) => bar[2] || 0));
  const made = svg("svg", { class: "strip", viewBox: `0 0 ${w} ${h}`, height: h, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const unit = h - (h - 6) / most, known = bars.filter((bar) => bar[2] !== null).sort((a, b) => (b[2] || 0) - (a[2] || 0))[0];
  if (limited && most < 8) made.append(svg("line", { class: "mark-line", x1: 0, x2: w, y1: unit, y2: unit, "vector-effect": "non-scaling-stroke" }, svg("title", {}, "one unit in the last place")));
  bars.forEach(([name, state, distance, item], k) => {
    const tall = state === "unchecked" ? h : distance === null ? (state === "fails" ? h : 2) : Math.max((distance / most) * (h - 6), 2);
    const kind = state === "holds" ? "" : state === "fails" ? " bad" : " unsure";
    const bar = svg("rect", { class: `bar${kind}`, x: k * wide, y: h - tall, width: Math.max(wide * 0.82, 0.5), height: tall }, svg("title", {}, `${name}: ${distance === null ? state : `${figure(distance)} units in the last place`}`));
    if (item !== null) bar.addEventListener("click", () => { choose(item, true); byId("picture").scrollIntoView({ block: "nearest" }); });
    made.append(bar);
  });
  const note = known && html("p", { class: "sub" }, "The highest: ", linkTo(known[3], known[0]), `, ${figure(known[2])} ${known[2] === 1 ? "unit" : "units"}.`, limited && most < 8 ? " The dashed line is one unit." : "");
  return html("div", {}, made, note);
}

function evidence() {
  if (data.checks.length) {
    section("Outputs", `Each output of both networks, next to what rounding explains${data.runtime ? `; run in ${data.runtime}` : ""}. How many elements (upright, logarithmic) differ by how much.`, html("div", { class: "cards" }, ...data.checks.slice(0, 60).map((/** @type {any} */ check) =>
      html("article", { class: "card" }, html("h3", {}, statusMark(check.status), check.output), html("p", {}, `${check.inputs} inputs · difference ${figure(check.difference)}, tolerance ${figure(check.tolerance)}${check.note ? ` · ${check.note}` : ""}`), check.spread ? histogram(check) : null))));
  }
  if (data.power.length) {
    const noticed = data.power.filter((/** @type {any} */ each) => each.noticed).length;
    const hidden = data.power.filter((/** @type {any} */ each) => !each.noticed);
    section("Planted errors", `An error of ${figure(data.power[0].size * 100)} % was planted in one channel of the folded layers, to see whether this comparison would notice a wrong fold. It noticed ${noticed} of ${data.power.length}.`,
      html("ul", { class: "planted" }, ...[...hidden, ...data.power.filter((/** @type {any} */ each) => each.noticed)].slice(0, 40).map((/** @type {any} */ each) =>
        html("li", {}, statusMark(each.noticed ? "pass" : "inconclusive"), `${each.noticed ? "noticed" : "not noticed"}: ${figure(each.ratio)} times the tolerance, in ${each.count > 1 ? `${each.count} layers, such as ` : ""}`, html("code", {}, each.layers[0] || "")))));
  }
  if (data.certificates.length) section("Folds, computed a second time", "Each bar is a layer that changed: how far its stored weights are from those that other formulas give, in units in the last place. One unit is what rounding explains.", strip(data.certificates, `distance of ${data.certificates.length} folds`, true));
  if (data.proof && data.proof.layers.length) section("Layers, by proof", `Each bar is a layer: how far its weights in one file are from those in the other, once all maps are brought together, in units in the last place. Nothing is run for it.${data.proof.why ? ` ${data.proof.status}: ${data.proof.why}` : ""}`, strip(data.proof.layers.map((/** @type {any[]} */ each) => [each[0], "holds", each[1], each[2]]), `distance of ${data.proof.layers.length} layers`, false));
  const said = [...data.extras || [], ...data.notes || [], ...(data.timing ? [`time of a run: ${data.timing.text}`] : []), ...(data.providers || []).filter((/** @type {string[]} */ each) => each[2] || each[0] !== "cpu").map((/** @type {string[]} */ each) => `on ${each[0]}: ${each[1]}${each[2] ? `, ${each[2]}` : ""}`)];
  if (said.length) section("Notes", "What else was done or seen.", html("ul", {}, ...said.map((note) => html("li", {}, note))));
}

const COLUMNS = ["What", "Operator", "Type", "Into, or stopped at", "Law, or reason", "Apart", "What could be done"];
function tableOfAll() {
  /** @type {{cells: (string|number|null)[], item: number|null, other: number|null}[]} */
  const rows = [], unmerged = /** @type {typeof rows} */ ([]);
  for (const kept of keeps) {
    const row = { cells: [kept.kind === "map" ? "stays" : kept.kind === "bias" ? "a bias" : "not merged", kept.name, kept.op, kept.at === null ? "" : nameOf(kept.at), `${kept.code}: ${kept.brief || kept.message}`, null, kept.advice], item: kept.node, other: kept.at };
    (kept.kind === "map" ? rows : unmerged).push(row);
  }
  for (const fold of folds) {
    const first = fold.gone[0] ?? fold.into;
    rows.push({ cells: [fold.kind, fold.names.join(", "), [...new Set(fold.gone.map(opOf))].join(", "), fold.target, fold.laws.join("; "), fold.ulps, ""], item: first, other: fold.into });
  }
  rows.push(...unmerged);
  if (!rows.length) return;
  const STEP = 400, body = html("tbody"), head = html("tr"), filter = /** @type {HTMLInputElement} */ (html("input", { class: "filter", type: "search", placeholder: "Show rows with …", "aria-label": "Show rows with" }));
  const more = html("button", { class: "plain", type: "button" });
  let sorted = -1, turned = false, most = STEP;
  const fill = () => {
    const wanted = filter.value.toLowerCase();
    const kept = rows.filter((row) => !wanted || row.cells.some((cell) => String(cell ?? "").toLowerCase().includes(wanted)));
    if (sorted >= 0) kept.sort((a, b) => {
      const [x, y] = [a.cells[sorted], b.cells[sorted]];
      if (x === null || y === null) return (x === null ? 1 : 0) - (y === null ? 1 : 0);
      return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true })) * (turned ? -1 : 1);
    });
    body.replaceChildren(...kept.slice(0, most).map((row) => html("tr", {}, ...row.cells.map((cell, k) => {
      if (k === 1) return html("td", { class: "code" }, row.item === null ? String(cell) : linkTo(row.item, String(cell)));
      if (k === 3) return html("td", { class: "code" }, row.other === null || !cell ? String(cell ?? "") : linkTo(row.other, String(cell)));
      if (k === 5) return html("td", { class: "num" }, cell === null ? "" : figure(Number(cell)));
      return html("td", {}, k === 0 ? html("span", { class: `tag ${cell === "stays" ? "kept" : cell === "not merged" || cell === "a bias" ? "" : "gone"}` }, String(cell)) : String(cell ?? ""));
    }))));
    more.hidden = kept.length <= most;
    more.textContent = `Show ${Math.min(STEP, kept.length - most)} more of ${kept.length}`;
  };
  COLUMNS.forEach((title, k) => {
    const button = html("button", { type: "button" }, title), cell = html("th", { scope: "col", class: k === 5 ? "num" : "" }, button);
    button.addEventListener("click", () => {
      turned = sorted === k && !turned;
      sorted = k;
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", turned ? "descending" : "ascending");
      fill();
    });
    head.append(cell);
  });
  filter.addEventListener("input", () => { most = STEP; fill(); });
  more.addEventListener("click", () => { most += STEP; fill(); });
  fill();
  section("Everything that folds, merges or stays", "Click a title to sort, a name to see it in the picture.", filter, html("div", { class: "scroll" }, html("table", { id: "all" }, html("thead", {}, head), body)), more);
}

function closing() {
  if (data.commands.length) section("Do it again", `bnfold ${data.bnfold}. What made this page, and what checks its result.`, ...data.commands.map((/** @type {string} */ line) => html("pre", { class: "cmd", tabindex: "0" }, line)));
}
