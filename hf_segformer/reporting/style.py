# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The style sheet of reports: light and dark as the reader's system is, from 320 pixels of width on."""

CSS = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1c2024; --muted: #5c6570; --rule: #d5dae0;
  --a: #2563eb; --b: #c2410c; --c: #15803d; --bar: #2563eb33; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1d2125; --ink: #e8eaed; --muted: #9aa4af;
  --rule: #3a4149; --a: #5b93ff; --b: #fb923c; --c: #4ade80; --bar: #5b93ff4d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem) 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; line-height: 1.2; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0; }
.muted, figcaption { color: var(--muted); }
pre { background: var(--card); padding: .7rem .9rem; white-space: pre-wrap; margin: .4rem 0; border-radius: 6px;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1.2rem 0 0; }
.tiles div { background: var(--card); border-radius: 8px; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; line-height: 1.2; }
.tiles span { color: var(--muted); font-size: .87rem; }
.grid { display: grid; gap: 1.4rem 1.6rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; background: #fff; }
figcaption { font-size: .9rem; margin: .3rem 0; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: right; padding: .22rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; font-weight: normal; }
thead th { color: var(--muted); font-size: .87rem; vertical-align: bottom; }
th:first-child, td:first-child, .two td:nth-child(2), .two th:nth-child(2) { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 8rem; max-width: 22rem; }
.pairs td, .pairs th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs th { color: var(--muted); min-width: 8rem; width: 14rem; }
tr.mean td { font-weight: 600; border-top: 2px solid var(--rule); }
td.bar { min-width: 7rem; background: linear-gradient(var(--bar), var(--bar)) 0 50% / var(--share) 72% no-repeat; }
i.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border: 1px solid var(--muted);
  border-radius: 2px; }
.chart figcaption { color: var(--ink); display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .5rem; }
.key { color: var(--muted); }
.key i { display: inline-block; width: 1.4em; height: 0; border-top: 3px solid; margin-right: .4em;
  vertical-align: middle; }
.plot { position: relative; margin: 0 .9rem 1.7rem 3.6rem; height: 14rem; font-size: 12px; color: var(--muted);
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot span { position: absolute; white-space: nowrap; }
.y span { right: calc(100% + .5rem); transform: translateY(50%); }
.x span { top: calc(100% + .3rem); transform: translateX(-50%); }
.plot polyline, .plot path { fill: none; stroke: currentColor; vector-effect: non-scaling-stroke; stroke-width: 2;
  stroke-linejoin: round; }
.plot .grid { stroke: var(--rule); stroke-width: 1; }
.plot .dot { stroke-width: 7; stroke-linecap: round; }
.plot .faint { stroke-width: 1; opacity: .4; }
.plot .dashed { stroke-dasharray: 6 4; stroke-width: 1.5; }
i.dashed { border-top-style: dashed !important; }
i.faint { opacity: .4; }
.a { color: var(--a); } .b { color: var(--b); } .c { color: var(--c); } .d { color: var(--muted); }
.confusion { display: block; font-family: inherit; }
.confusion rect { fill: var(--a); } .confusion .frame { fill: none; stroke: var(--rule); }
.confusion text { fill: var(--ink); text-anchor: middle; dominant-baseline: central; }
.confusion .on { fill: #fff; } .confusion .row { text-anchor: end; }
@media (prefers-color-scheme: dark) { .confusion rect { fill: #3b74e0; } .confusion .frame { fill: none; } }
@media print { body { max-width: none; } h2, figure, tr { break-inside: avoid; } }
"""
