"""The style sheet of the pages: the report's, and what reports lack: forms, buttons, lists to choose from."""

from __future__ import annotations

from lowcomm.report.style import STYLE

MORE = """
a { color: var(--run-0); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { border-bottom: 1px solid var(--line); background: var(--panel); }
nav div { max-width: 1360px; margin: 0 auto; padding: 0 24px; display: flex; gap: 22px; align-items: center;
  height: 48px; }
nav b { font-weight: 650; letter-spacing: -.01em; }
nav a { color: var(--muted); padding: 12px 0 10px; border-bottom: 2px solid transparent; }
nav a.here { color: var(--text); border-color: var(--run-0); }
nav a:hover { color: var(--text); text-decoration: none; }
nav span { margin-left: auto; color: var(--muted); font-size: 13px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
button, .button { font: inherit; font-size: 14px; font-weight: 500; padding: 7px 14px; border-radius: 7px;
  cursor: pointer;
  border: 1px solid var(--line); background: var(--panel); color: var(--text); display: inline-block;
  white-space: nowrap; }
button:hover, .button:hover { border-color: var(--axis); text-decoration: none; }
button.first, .button.first { background: #2b6cb8; border-color: #2b6cb8; color: #fff; }
button.first:hover, .button.first:hover { background: #245d9f; }
button:disabled { opacity: .5; cursor: default; }
:focus-visible { outline: 2px solid var(--run-0); outline-offset: 1px; }
[hidden] { display: none !important; }
.bar { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 14px 0; }
.bar.between { justify-content: space-between; }
input, select, textarea { font: inherit; font-size: 14px; color: var(--text); background: var(--page); width: 100%;
  border: 1px solid var(--line); border-radius: 7px; padding: 6px 9px; min-width: 0; }
input[type=checkbox] { width: 16px; height: 16px; accent-color: #2b6cb8; margin: 6px 0; }
td input[type=checkbox] { margin: 2px 0 0; }
.ask { padding: 14px 16px; margin: 18px 0; }
.ask form { display: flex; gap: 10px; }
.ask .hint { margin: 8px 0 0; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) 400px; gap: 22px; align-items: start; }
.side { position: sticky; top: 14px; padding: 14px 16px; max-height: calc(100vh - 28px); overflow-y: auto; }
.side h2 { margin: 18px 0 6px; font-size: 15px; }
.side h2:first-child { margin-top: 0; }
details.section { margin-bottom: 10px; }
details.section > summary { display: flex; gap: 10px; align-items: baseline; font-weight: 600; }
details.section > summary::before { content: "\\25B8"; color: var(--muted); width: 10px; }
details.section[open] > summary::before { content: "\\25BE"; }
summary small { color: var(--muted); font-weight: 400; }
summary em { margin-left: auto; font-style: normal; font-size: 13px; font-weight: 500; color: var(--run-0); }
summary em.bad { color: var(--bad); }
.row { display: grid; grid-template-columns: minmax(150px, 230px) minmax(0, 1fr); gap: 2px 14px; padding: 9px 16px;
  border-bottom: 1px solid var(--line); border-left: 3px solid transparent; }
.row:last-child { border-bottom: 0; }
.row label { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; padding-top: 6px;
  overflow-wrap: anywhere; }
.row .control { display: flex; gap: 8px; align-items: center; }
.row .control button { padding: 3px 9px; color: var(--muted); visibility: hidden; }
.row.changed .control button { visibility: visible; }
.row.part .control select { flex: 0 0 38%; }
.row.part input, .code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.row p { grid-column: 2; margin: 2px 0 0; font-size: 13px; color: var(--muted); overflow-wrap: anywhere; }
.row.changed { border-left-color: var(--run-0); }
.row.bad { border-left-color: var(--bad); }
.row.bad input, .row.bad select { border-color: var(--bad); }
.row p.problem, .problem { color: var(--bad); font-size: 13px; overflow-wrap: anywhere; }
.row.depth-1 label { padding-left: 18px; } .row.depth-2 label { padding-left: 36px; }
.row.depth-3 label, .row.depth-4 label, .row.depth-5 label { padding-left: 54px; }
pre { margin: 0; padding: 10px 12px; background: var(--page); border: 1px solid var(--line); border-radius: 7px;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre.tall { max-height: 340px; overflow-y: auto; }
table.diff { font-size: 13px; table-layout: fixed; max-width: 760px; }
table.diff td:first-child { width: 38%; }
table.diff td { padding: 5px 8px 5px 0; overflow-wrap: anywhere; }
table.diff del { color: var(--muted); } table.diff ins { text-decoration: none; font-weight: 600; }
.good { color: var(--good); font-size: 14px; font-weight: 500; }
.cards { columns: 3 320px; column-gap: 12px; }
.card { padding: 12px 16px; margin-bottom: 12px; break-inside: avoid; }
.card h3 { margin-bottom: 6px; }
.card a { display: block; padding: 5px 0; }
.card a span { display: block; color: var(--muted); font-size: 13px; line-height: 1.4; }
.progress { height: 6px; border-radius: 3px; background: var(--training); overflow: hidden; margin: 12px 0 0; }
.progress i { display: block; height: 100%; width: 0; background: var(--run-0); border-radius: 3px;
  transition: width .4s; }
.status.starting { color: var(--run-0); } .status.interrupted, .status.unreadable, .status.refused {
  color: var(--bad); }
.said { padding: 16px; color: var(--muted); }
td.act { white-space: nowrap; text-align: right; }
td.act button, td.act .button { padding: 2px 10px; font-size: 13px; }
@media (max-width: 1000px) { .columns { grid-template-columns: minmax(0, 1fr); } .side { position: static;
  max-height: none; } }
@media (max-width: 720px) {
  nav div { padding: 0 12px; gap: 16px; }
  .row { grid-template-columns: minmax(0, 1fr); padding: 9px 12px; }
  .row label { padding-top: 0; } .row p { grid-column: 1; }
  .row .control button { display: none; } .row.changed .control button { display: inline-block; }
  .row.part .control { flex-wrap: wrap; } .row.part .control select { flex: 1 0 100%; }
  .ask form { flex-wrap: wrap; } .ask form button { width: 100%; }
}
"""
SHEET = STYLE + MORE
