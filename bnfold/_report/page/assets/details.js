/* What there is to say of one operator, in words and numbers. */

/** @param {string} tag @param {Record<string, string>} [given] @param {(Node|string|null|false|undefined)[]} children */
function html(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
  made.append(.../** @type {(Node|string)[]} */ (children.filter((child) => child !== null && child !== false && child !== undefined)));
  return made;
}
/** @param {number|null|undefined} value */
function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const large = Math.abs(value);
  return (large >= 1e-3 && large < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2)).replace("-", "−").replace("e+", "e");
}
/** From one number to another. @param {number|null} least @param {number|null} most */
const reach = (least, most) => (least === most ? figure(least) : `${figure(least)} … ${figure(most)}`);
/** A number of things. @param {number} n @param {string} noun */
const many = (n, noun) => `${grouped(n)} ${noun}${n === 1 ? "" : "s"}`;
/** A button that leads to an operator. @param {number|null} item @param {string} [text] */
function linkTo(item, text) {
  if (item === null) return html("span", { class: "sub" }, text || "");
  const made = html("button", { class: "link", type: "button" }, text || nameOf(item));
  made.addEventListener("click", () => choose(item, true));
  return made;
}
/** @param {string} title @param {(Node|string|null|false)[]} children */
const part = (title, ...children) => [html("h3", {}, title), ...children];

/** Weights that are so many units apart are no rounding, whatever tool made them. */
const FAR = 4;
const NORM = "s = γ / √(var + ε)\nt = β − μ · s";
/** What a law does, as a formula. @param {string} law */
function formulaOf(law) {
  if (law.startsWith("absorb behind")) return "W′[o] = s[o] · W[o]\nb′[o] = s[o] · b[o] + t[o]";
  if (law.startsWith("absorb ahead")) return "W′[:, i] = W[:, i] · s[i]\nb′[o] = b[o] + Σ W[o, i] · t[i]";
  if (law === "compose" || law.startsWith("compose")) return "s₂ · (s₁ · x + t₁) + t₂ = (s₂ · s₁) · x + (s₂ · t₁ + t₂)";
  if (law === "merge in parallel") return "W₁ ∗ x + W₂ ∗ x = (W₁ + W₂) ∗ x";
  if (law === "merge in series") return "W₂ ∗ (W₁ ∗ x) = (W₂ ∗ W₁) ∗ x";
  return "";
}

/** @param {Fold} fold @param {number} of */
function foldParts(fold, of) {
  const gone = fold.gone.includes(of);
  const formulas = [...new Set([
    fold.gone.some((n) => /BatchNormalization$/.test(opOf(n))) ? NORM : "",
    ...fold.laws.map(formulaOf),
  ])].filter(Boolean);
  const place = fold.gone.indexOf(of), range = place >= 0 ? fold.ranges[place] : null;
  return [
    gone
      ? html("p", {}, fold.kind === "merge" ? "It became one operator with " : fold.kind === "equal" ? "It computes the same as " : fold.kind === "rewrite" ? "It is written as other operators, in the place of " : fold.laws.some((law) => law.startsWith("leave")) ? "A part of it went into " : data.kind === "verify" ? "bnfold would fold it into " : "Its scale and shift went into ", linkTo(fold.into, fold.target))
      : html("p", {}, fold.kind === "merge" ? "It took the place of " : "It took in ", ...fold.names.flatMap((name, k) => [k ? ", " : "", linkTo(fold.gone[k] ?? null, name)])),
    range && html("p", { class: "sub" }, `scale ${reach(range[0], range[1])}, shift ${reach(range[2], range[3])}${(range[4] || 1) > 1 ? `, ${many(range[4] || 1, "channel")}` : ", the same everywhere"}`),
    fold.crossed.length > 0 && html("p", {}, "across ", ...fold.crossed.flatMap((n, k) => [k ? ", " : "", linkTo(n, `${opOf(n)} ${tail(nameOf(n))}`)])),
    html("p", { class: "sub" }, `by the laws: ${fold.laws.join("; ")}`),
    formulas.length > 0 && html("div", { class: "formula" }, formulas.join("\n")),
    fold.state === "holds" && html("p", {}, html("span", { class: "good" }, "✓ "), `computed a second time, in another way: ${figure(fold.ulps)} units in the last place apart${fold.probe !== null ? `; on real numbers ${figure(fold.probe)} of what rounding explains` : ""}`),
    fold.state === "fails" && html("p", { class: "bad" }, `✗ the second computation says otherwise: ${fold.problem || `${figure(fold.ulps)} units in the last place`}`),
    fold.state === "unchecked" && html("p", { class: "unsure" }, `? not checked by itself: ${fold.problem}`),
  ];
}

/** @param {number} layer */
function channelTable(layer) {
  const table = data.tables[String(layer)];
  if (!table) return [];
  const rows = /** @type {(number|null)[][]} */ (table.rows), behind = rows.some((row) => row[1] !== null), told = rows.some((row) => row[7] !== null);
  const worst = Math.max(...rows.map((row) => row[7] || 0));
  const head = ["", ...(behind ? ["s", "t"] : []), "|W|", "|W′|", "b", "b′", ...(told ? ["apart"] : [])];
  const from = behind ? 0 : 2, to = told ? 7 : 6;
  /** @param {string} name @param {(number|null)[]} values @param {Record<string, string>} given */
  const line = (name, values, given = {}) => html("tr", given, html("th", { scope: "row" }, name), ...values.slice(from, to).map((value) => html("td", {}, figure(value === null ? null : Number(value.toPrecision(3))))));
  const sums = rows.length > 2 || table.seen > rows.length ? ["least", "middle", "most"].map((name, end) => line(name, table.spread.map((/** @type {number[]|null} */ each) => each && each[end]), { class: "sum" })) : [];
  const made = html("table", { class: "channels" }, html("thead", {}, html("tr", {}, ...head.map((text) => html("th", { scope: "col" }, text)))), html("tbody", {}, ...sums, ...rows.map((row) => line(String(row[0]), row.slice(1), (row[7] || 0) > FAR ? { class: "bad" } : {}))));
  const rest = rows.length < table.count ? (table.seen < table.count ? `: the first ${rows.length} of ${table.count}` : `: ${told ? "the farthest" : "those that changed most,"} ${rows.length} of ${table.count}`) : `: ${table.count}`;
  return part(
    `Channels of ${tail(nameOf(layer))}${rest}`,
    html("div", { class: "scroll" }, made),
    worst > FAR && html("p", { class: "bad" }, "✗ more than rounding explains"),
    html("p", { class: "sub" }, `|W|: largest weight of the channel, b: its bias; ′ is after${told ? "; apart: from s·W and s·b + t, in units in the last place" : ""}`),
  );
}

/** Fill the panel at the side. @param {number|null} item */
function tell(item) {
  const host = byId("details");
  host.replaceChildren(...(item === null ? summary() : item < 0 ? ofGroup(~item) : ofOperator(item)).filter((each) => each !== null && each !== false));
  host.scrollTop = 0;
}

/** @param {number} n @returns {any[]} */
function ofOperator(n) {
  const port = isPort(n), kind = wrong.has(n) ? "wrong" : fate[n];
  const words = /** @type {Record<string, string>} */ ({ gone: "gone", into: data.kind === "verify" ? "other weights" : "took something in", kept: "stays", new: "new", wrong: "differs" });
  const from = foldsFrom.get(n) || [], into = foldsInto.get(n) || [], kept = keptAt.get(n);
  const layer = data.tables[String(n)] ? n : from.length && from[0].into !== null ? from[0].into : null;
  return [
    html("h2", {}, port ? `${opOf(n)} ${nameOf(n)}` : opOf(n)),
    !port && html("p", { class: "formula" }, nameOf(n)),
    kind && html("p", {}, html("span", { class: `tag ${kind}` }, words[kind])),
    html("p", { class: "sub" }, [owner[n] ? `in ${pathOf(owner[n])}` : "", data.nodes[n][4] ? `graph ${data.nodes[n][4]}` : "", data.nodes[n][3] ? `puts out ${data.nodes[n][3]}` : ""].filter(Boolean).join(" · ")),
    ...(fate[n] === "gone" && !from.length && data.kind === "fold" ? [html("p", {}, "It is not needed any more where the maps around it went.")] : []),
    ...(altered.has(n) ? [html("p", {}, "Its weights were changed once more behind the fold; see Besides folding.")] : []),
    ...from.flatMap((fold) => part(data.kind === "verify" ? "Where it may have gone" : "Where it went", ...foldParts(fold, n))),
    ...(kept ? part(kept.kind === "bias" ? "The bias of the layer before" : kept.kind !== "map" ? "Why it was not merged" : fate[n] === "gone" ? "Why a part of it stays" : "Why it stays", html("p", {}, kept.brief || kept.message), kept.at !== null && kept.at !== n ? html("p", {}, "stopped at ", linkTo(kept.at, `${opOf(kept.at)} ${nameOf(kept.at)}`)) : null, html("p", { class: "sub" }, html("b", {}, kept.code), kept.meaning ? `: ${kept.meaning}` : ""), kept.brief ? html("p", { class: "sub" }, kept.message) : null, html("h3", {}, "What helps"), html("p", {}, kept.advice)) : []),
    ...(stoppedAt.has(n) ? part("It stopped", ...(stoppedAt.get(n) || []).map((each) => html("p", {}, linkTo(each)))) : []),
    ...into.slice(0, 20).flatMap((fold) => part(fold.kind === "merge" ? "What it replaces" : "What it took in", ...foldParts(fold, n))),
    ...(layer !== null ? channelTable(layer) : []),
  ];
}

/** @param {number} g @returns {any[]} */
function ofGroup(g) {
  const sum = sums[g], open = opened.has(g);
  const button = html("button", { class: "plain", type: "button" }, open ? "Close" : "Open");
  button.addEventListener("click", () => { toggle(g); tell(~g); });
  const ops = [...sum.ops].sort((a, b) => b[1] - a[1]).slice(0, 12);
  return [
    html("h2", {}, titleOf(g)),
    html("p", { class: "sub" }, pathOf(g)),
    html("p", {}, `${many(sum.before, "operator")} before, ${grouped(sum.after)} after`),
    html("p", {}, button),
    ...part("Operators", html("ul", {}, ...ops.map(([op, n]) => html("li", {}, `${grouped(n)} × ${data.ops[op]}`)))),
  ];
}

/** What the panel says while nothing is chosen. @returns {any[]} */
function summary() {
  /** @type {Map<string, {n: number, first: Fold}>} */
  const kinds = new Map();
  for (const fold of folds) {
    const last = fold.laws.filter((law) => !/^(carry|leave|drop)/.test(law)).pop() || fold.laws[0];
    const key = fold.kind === "equal" ? "as equal to another one" : fold.kind === "merge" ? fold.laws[0].replace(/^merge/, "merged") : last
      .replace(/^absorb behind (.*)$/, "into the $1 before").replace(/^absorb ahead of (.*)$/, "into the $1 after").replace(/^drop the identity$/, "that changed nothing").replace(/^compose$/, "into one").replace(/^write as/, "written as");
    const known = kinds.get(key);
    const stay = fold.gone.filter((n) => fate[n] === "kept").length, went = fold.names.length - stay || fold.names.length;
    if (known) known.n += went; else kinds.set(key, { n: went, first: fold });
  }
  /** @type {Map<string, {n: number, first: Kept}>} */
  const reasons = new Map();
  for (const kept of keeps) {
    if (kept.kind !== "map") continue;
    const known = reasons.get(kept.code);
    if (known) known.n++; else reasons.set(kept.code, { n: 1, first: kept });
  }
  const gone = fate.filter((each) => each === "gone").length;
  /** One that is gone, of maps that went in together. @param {Fold} fold */
  const example = (fold) => { const n = fold.gone.find((each) => fate[each] !== "kept"); return n === undefined ? linkTo(fold.gone[0] ?? fold.into, tail(fold.names[0])) : linkTo(n, tail(nameOf(n))); };
  return [
    html("h2", {}, data.kind === "verify" ? "Two files, one function?" : gone ? `${many(gone, "operator")} gone` : "Nothing to fold"),
    html("p", { class: "sub" }, data.kind === "verify" ? "Blue operators have other weights in the second file, dashed ones are not in it. Groups open and close." : "Point at an operator to see where it went; click for formula, channels and reason. Groups open and close."),
    ...(kinds.size ? part("What went where", html("ul", {}, ...[...kinds].sort((a, b) => b[1].n - a[1].n).map(([law, { n, first }]) => html("li", {}, html("b", {}, grouped(n)), ` ${law}, such as `, example(first))))) : []),
    ...((data.extras || []).length ? part("Besides folding", html("ul", {}, ...data.extras.map((/** @type {string} */ line) => html("li", {}, line)))) : []),
    ...(reasons.size ? part("What stays, and why", html("ul", {}, ...[...reasons].sort((a, b) => b[1].n - a[1].n).map(([code, { n, first }]) => html("li", {}, html("b", {}, grouped(n)), ` ${code}, such as `, linkTo(first.node === null ? null : restOf.get(first.node) ?? first.node, tail(first.name)))))) : []),
    ...(data.divergence ? part("Where it begins", html("p", {}, "first tensor that differs: ", linkTo(data.divergence.at, data.divergence.tensor)), ...data.divergence.suspects.slice(-8).map((/** @type {any} */ each) => html("p", {}, "suspect: ", linkTo(each[1], each[0])))) : []),
    ...(data.proof && data.proof.status !== "proved" ? part("Where the proof ends", html("p", {}, linkTo(data.proof.node, data.proof.at)), html("p", {}, data.proof.why)) : []),
    ...part("Keys", html("p", { class: "sub" }, "↓ ↑ through the operators · → open, or follow a fold · ← close, or out · + − 0 zoom · / find · Ctrl and wheel zoom")),
  ];
}
