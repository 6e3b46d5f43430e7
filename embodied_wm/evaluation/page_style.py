"""Style sheet of the report page: light and dark, phone and paper, no external font."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1c2024; --muted: #68707c; --line: #e4e7eb; --soft: #f6f7f8;
  --c0: #0067a5; --c1: #c8500a; --c2: #00805a; --c3: #a3478c; --c4: #8a6d00; --c5: #3c8dc8;
  --good: #00704f; --bad: #b3400a;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, "Liberation Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --ink: #e6e8eb; --muted: #98a1ad; --line: #2b3036; --soft: #1b1f23;
    --c0: #5cb0e8; --c1: #f0935a; --c2: #4cc29b; --c3: #d88fc5; --c4: #d6b94c; --c5: #9fd0f2;
    --good: #4cc29b; --bad: #f0935a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1096px; margin: 0 auto; padding: 56px 28px 72px; }
h1, h2 { font-family: var(--serif); font-weight: 600; letter-spacing: -0.01em; line-height: 1.2; margin: 0; }
h1 { font-size: 34px; text-wrap: balance; }
h2 { font-size: 23px; margin-bottom: 6px; }
h3 { font-size: 14px; font-weight: 600; margin: 22px 0 6px; }
p { margin: 0 0 12px; max-width: 68ch; text-wrap: pretty; }
.kind { color: var(--muted); font-size: 13px; letter-spacing: 0.04em; margin: 0 0 8px; }
.summary { font: 18px/1.55 var(--serif); margin: 14px 0 0; }
.headline { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 0 26px;
  margin: 34px 0 0; padding: 20px 0 4px; border-top: 1px solid var(--ink); border-bottom: 1px solid var(--line); }
.headline dt { font-size: 13.5px; line-height: 1.35; color: var(--muted); }
.headline > div { display: grid; grid-row: span 5; grid-template-rows: subgrid; }
.headline dd:last-child { margin-bottom: 18px; }
.headline dd { margin: 0; font-size: 13px; line-height: 1.5; color: var(--muted); }
.headline dd.value { font: 600 31px/1.25 var(--serif); color: var(--ink); padding-top: 3px;
  font-variant-numeric: lining-nums tabular-nums; }
.headline dd.value small { font: 400 15px var(--sans); color: var(--muted); margin-left: 3px; }
.met { color: var(--good); } .missed { color: var(--bad); }
section { margin-top: 52px; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 30px 36px; margin-top: 18px; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure:only-child:not(.wide) { grid-column: 1 / -1; max-width: 620px; }
.frame { overflow-x: auto; overscroll-behavior-x: contain; }
.frame > svg, .frame > img { display: block; width: 100%; height: auto; }
.wide .frame > svg { width: auto; max-width: 100%; }
.frame > img { width: auto; max-width: 100%; }
.frame > img.png { image-rendering: pixelated; }
.frame > svg text { font-family: var(--sans) !important; }
figcaption { font-size: 14px; line-height: 1.5; color: var(--muted); margin-top: 9px; max-width: 76ch; }
figcaption b { color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin-top: 16px; width: 100%;
  font-variant-numeric: lining-nums tabular-nums; }
th, td { text-align: left; padding: 7px 18px 7px 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { font-weight: 600; border-bottom: 1px solid var(--ink); white-space: nowrap; }
tbody th { font-weight: 400; }
td.number, th.number { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
.lead { display: inline-block; min-width: 3.6em; }
.ci { color: var(--muted); font-size: 0.9em; white-space: nowrap; }
@media (min-width: 681px) { td.estimate { white-space: nowrap; } }
td.long { min-width: 15em; }
.note { color: var(--muted); font-size: 13px; margin-top: 8px; }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
.folded { margin-top: 64px; }
summary { cursor: pointer; padding: 13px 0; font-weight: 600; font-size: 15px; }
summary:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
details > div { padding: 0 0 22px; }
code, pre { font: 12.5px/1.5 var(--mono); }
pre { background: var(--soft); padding: 14px; overflow-x: auto; margin: 8px 0 0; }
td code { overflow-wrap: anywhere; }
@media (max-width: 980px) { .headline { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@media (max-width: 680px) {
  body { font-size: 15px; }
  main { padding: 28px 18px 48px; }
  h1 { font-size: 26px; } h2 { font-size: 20px; } .summary { font-size: 16px; }
  .headline { grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 18px; margin-top: 24px; }
  .headline dd.value { font-size: 25px; }
  .pictures { grid-template-columns: minmax(0, 1fr); gap: 26px; }
  .wide .frame > svg { max-width: none; width: var(--natural); min-width: 100%; max-height: none; }
  .wide .frame { margin-right: -18px; padding-right: 18px; }
  section { margin-top: 40px; }
}
@media print {
  :root { color-scheme: light; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, tr, .headline { break-inside: avoid; }
  h2 { break-after: avoid; }
  .frame, .scroll, pre { overflow: visible; }
  .wide .frame > svg { max-width: 100%; width: auto; max-height: 165mm; }
  pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; block-size: auto; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
@media print and (prefers-color-scheme: dark) {
  :root { --page: #fff; --ink: #1c2024; --muted: #5b636e; --line: #d5d9de; --soft: #f6f7f8; --c0: #0067a5;
    --c1: #c8500a; --c2: #00805a; --c3: #a3478c; --c4: #8a6d00; --c5: #3c8dc8; --good: #00704f; --bad: #b3400a; }
}
"""
