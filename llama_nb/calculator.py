"""The roofline as a page to play with: one HTML fragment that needs nothing else."""

import json
from collections.abc import Iterable
from typing import Any

from llama_nb import hardware, presets, roofline

MODELS = ("smollm2-135m", "llama3.2-1b", "llama3.2-3b", "llama2-7b", "llama3.1-8b")
MODELS += ("llama3.1-70b", "llama3.1-405b")


def table(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return per model the numbers from which a decode step's floor follows.

    For batch B, context S and widths w and c (bytes per number of weights and cache), a step reads
    `w * read + B * (w * row + c * cache * S)` bytes, and a chip holds
    `w * held + c * cache * B * S`; it computes `B * (flops + score_flops * S)` FLOPs. (Of the
    cache, the step also writes one position per sequence.)
    """
    rows = {}
    for name in names:
        config = presets.get(name)
        one, two = (roofline.total(roofline.ops(config, roofline.decode(1, S))) for S in (1, 2))
        row = config.embed_dim
        rows[name] = {
            "held": config.param_count(),
            "read": one.weights // 2 - row,
            "row": row,
            "cache": config.cache_bytes_per_token(1),
            "flops": 2 * one.flops - two.flops,
            "score_flops": two.flops - one.flops,
            "context": config.context,
        }
    return rows


def html(names: Iterable[str] = MODELS, element: str = "llama-nb-calculator") -> str:
    """Return the calculator: choose a model, chips, batch and context; see bytes, time, limits.

    Parameters
    ----------
    names
        Models to choose from, of `presets`.
    element
        Id of the fragment's outer element; a page with two calculators needs two.
    """
    chips = {
        name: {"flops": chip.flops, "bandwidth": chip.bandwidth, "capacity": chip.capacity}
        for name, chip in hardware.CHIPS.items()
    }
    data = json.dumps({"models": table(names), "chips": chips}, separators=(",", ":"))
    return _PAGE.replace("ELEMENT", element).replace("DATA", data)


_PAGE = """
<div id="ELEMENT" style="background:#fff;color:#111;border:1px solid #bbb;border-radius:6px;
padding:12px 14px;max-width:720px;font:14px/1.5 system-ui,sans-serif">
<style>#ELEMENT label{display:grid;grid-template-columns:7.5em 1fr 6.5em;gap:8px;margin:3px 0}
#ELEMENT select{color:#111;background:#fff;border:1px solid #888;border-radius:4px;padding:1px}
#ELEMENT td{font-size:14px;padding:1px 10px 1px 0;border:0;color:#111;background:#fff}
#ELEMENT td+td{font-weight:600}
</style>
<label>model<select data-k="model"></select><span></span></label>
<label>chip<select data-k="chip"></select><span></span></label>
<label>chips<input data-k="chips" type="range" min="0" max="8" value="0"><output></output></label>
<label>batch<input data-k="batch" type="range" min="0" max="10" value="0"><output></output></label>
<label>context<input data-k="context" type="range" min="7" max="17" value="11">
<output></output></label>
<label>weights<select data-k="w"><option value="2">bfloat16<option value="1">int8</select>
<span></span></label>
<label>cache<select data-k="c"><option value="2">bfloat16<option value="1">int8</select>
<span></span></label>
<table style="margin:8px 0;border-collapse:collapse"><tbody></tbody></table>
<svg viewBox="0 0 640 250" width="100%" role="img" font-size="12"
aria-label="Most tokens per second against batch, for the choices above"></svg>
</div>
<script>(() => {
const data = DATA, root = document.getElementById("ELEMENT");
const field = k => root.querySelector(`[data-k=${k}]`);
const show = (n, unit) => { const p = ["", "k", "M", "G", "T", "P"]; let i = 0;
  while (n >= 1000 && i < 5) { n /= 1000; i++; }
  return `${n < 10 ? n.toFixed(2) : n < 100 ? n.toFixed(1) : n.toFixed(0)} ${p[i]}${unit}`; };
for (const k of ["model", "chip"]) for (const name in data[k + "s"]) field(k).add(new Option(name));
field("model").value = "llama3.1-8b"; field("chip").value = "TPU v6e";
function floor(m, chip, chips, B, S, w, c) {
  const cache = c * m.cache * B * S, bytes = w * m.read + B * (w * m.row + c * m.cache) + cache;
  const memory = bytes / chips / chip.bandwidth;
  const compute = B * (m.flops + m.score_flops * S) / chips / chip.flops;
  const held = (w * m.held + cache) / chips;
  return {cache, memory, compute, held, time: Math.max(memory, compute),
          fits: held <= chip.capacity}; }
function update() {
  const m = data.models[field("model").value], chip = data.chips[field("chip").value];
  const [chips, B, S] = ["chips", "batch", "context"].map(k => 2 ** +field(k).value);
  const w = +field("w").value, c = +field("c").value;
  const f = floor(m, chip, chips, B, S, w, c);
  [["chips", chips], ["batch", B], ["context", S]].forEach(([k, v]) =>
    field(k).parentElement.querySelector("output").textContent = v.toLocaleString("en"));
  root.querySelector("tbody").innerHTML = [
    ["KV cache", show(f.cache, "B") + ` (${show(c * m.cache, "B")} per token)`],
    ["held per chip", show(f.held, "B") + ` of ${show(chip.capacity, "B")}` +
      (f.fits ? "" : ": does not fit")],
    ["least time of a step", show(f.time * 1e6, "µs").replace(" kµs", " ms").replace(" Mµs", " s")
      + (f.memory > f.compute ? ", bound by memory" : ", bound by arithmetic")],
    ["most tokens per second", show(B / f.time, "") + ` (${show(1 / f.time, "")} each)`],
  ].map(row => `<tr>${row.map(x => `<td>${x}</td>`).join("")}</tr>`).join("");
  const points = [...Array(11).keys()].map(i => [i, floor(m, chip, chips, 2 ** i, S, w, c)]);
  const logs = points.map(([i, p]) => Math.log10(2 ** i / p.time));
  const low = Math.floor(Math.min(...logs)), high = Math.ceil(Math.max(...logs) + 1e-9);
  const x = i => 60 + i * 56, y = v => 210 - 190 * (v - low) / (high - low);
  let art = "";
  for (let d = low; d <= high; d++)
    art += `<path d="M60 ${y(d)}H620" stroke="#ddd"/>
      <text x="54" y="${y(d) + 4}" text-anchor="end">${show(10 ** d, "")
        .replace(/[.]0+(?= )/, "")}</text>`;
  points.forEach(([i, p]) => art += `<text x="${x(i)}" y="226" text-anchor="middle">${2 ** i}</text>
    <circle cx="${x(i)}" cy="${y(logs[i])}" r="4" stroke="#0072B2"
    fill="${p.fits ? "#0072B2" : "#fff"}"/>`);
  art += `<path d="M${points.map(([i]) => x(i) + " " + y(logs[i])).join("L")}" fill="none"
    stroke="#0072B2"/><circle cx="${x(Math.log2(B))}" cy="${y(logs[Math.log2(B)])}" r="9"
    fill="none" stroke="#D55E00" stroke-width="3"/>
    <text x="340" y="245" text-anchor="middle">batch (hollow: does not fit)</text>
    <text x="64" y="14">tokens per second, all sequences</text>`;
  root.querySelector("svg").innerHTML = art; }
root.addEventListener("input", update); update();
})();</script>
"""
