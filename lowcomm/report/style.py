"""The style sheet of the page: system fonts, light and dark, one column on a narrow window."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --panel: #ffffff; --text: #1b1f24; --muted: #5b6570; --line: #e1e5ea;
  --grid: #e9ecf0; --axis: #b8c0c9; --training: #e3e8ed;
  --evaluation: #b9c4d0; --roll: #cfd6de; --blocked: #e6a93a; --late: #c62f26;
  --good: #1c7c4c; --warn: #9a5b00; --bad: #b3261e; --warn-page: #fff6e5;
  --run-0: #2b6cb8; --run-1: #d9692a; --run-2: #2a9165; --run-3: #b5427f;
  --run-4: #7a5cc4; --run-5: #a8860f; --run-6: #2193a5; --run-7: #c0434d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #13161a; --panel: #1b1f25; --text: #e7eaee; --muted: #9da7b3; --line: #2d333b;
    --grid: #2a3038; --axis: #4a535e; --training: #2f3741;
    --evaluation: #55616f; --roll: #454f5b; --blocked: #c98f2b; --late: #ef6a60;
    --good: #5cc48d; --warn: #e3a94b; --bad: #f2837b; --warn-page: #2b2415;
    --run-0: #6aa8ee; --run-1: #f09457; --run-2: #58c595; --run-3: #e47db3;
    --run-4: #a992ee; --run-5: #d3b341; --run-6: #5cc3d3; --run-7: #ef7f86;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1360px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; font-weight: 600; }
h3 { font-size: 14px; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0 0 8px; }
.sub, figcaption, .hint { color: var(--muted); font-size: 13px; }
.sub { overflow-wrap: anywhere; }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
header > .panel { margin-top: 14px; }
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 20px; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.tile span { color: var(--muted); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 10px; font-size: 14px; }
.legend .tag { overflow-wrap: anywhere; }
.tag { display: inline-flex; align-items: baseline; }
.tag i { flex: none; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; }
.status { font-weight: 600; }
.status.done { color: var(--good); }
.status.running { color: var(--run-0); }
.status.stopped { color: var(--warn); }
.status.failed { color: var(--bad); }
.warnings { margin: 16px 0 0; padding: 10px 16px 10px 34px; background: var(--warn-page);
  border: 1px solid var(--line); border-radius: 8px; font-size: 14px; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px 8px; min-width: 0; }
.plot { width: 100%; height: 270px; }
.timeline { margin-bottom: 14px; }
.empty { color: var(--muted); padding: 40px 0; text-align: center; font-size: 14px; }
.scroll { overflow-x: auto; }
.scroll.tall { max-height: 560px; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 13px; white-space: nowrap; }
tbody th { font-weight: 500; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.best { font-weight: 700; }
td.name { min-width: 150px; max-width: 340px; overflow-wrap: anywhere; }
td.code, th.code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  min-width: 130px; }
details summary { cursor: pointer; padding: 10px 14px; font-weight: 500; }
details[open] summary { border-bottom: 1px solid var(--line); }
footer { margin-top: 36px; color: var(--muted); font-size: 13px; }
@media (max-width: 1080px) { .plots { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 720px) {
  main { padding: 18px 12px 32px; }
  .plots { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tile b { font-size: 19px; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  th, td { padding: 6px 10px; }
}
"""
