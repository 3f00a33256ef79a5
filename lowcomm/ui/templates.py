"""Templates of the pages. Jinja2 escapes every value; what comes as HTML is made by the report, which escapes."""

from __future__ import annotations

from jinja2 import DictLoader, Environment, StrictUndefined

BASE = """<!doctype html>
<html lang="en" data-base="{{ base }}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · lowcomm</title>
<link rel="stylesheet" href="{{ base }}assets/ui.css"><link rel="icon" href="data:,"></head>
<body><nav><div><b>lowcomm</b>
<a href="{{ base }}"{% if here == "runs" %} class="here"{% endif %}>Runs</a>
<a href="{{ base }}new"{% if here == "new" %} class="here"{% endif %}>New run</a>
<span title="{{ root }}">{{ root }}</span></div></nav>
<main>{% block body %}{% endblock %}<noscript><p class="problem">These pages need JavaScript.</p></noscript></main>
{% for script in scripts %}<script src="{{ base }}assets/{{ script }}" defer></script>
{% endfor %}</body></html>
"""

ASK = """{% macro ask(current, text) %}
<div class="panel ask"><form id="ask" data-current="{{ current }}">
<input name="text" maxlength="2000" autocomplete="off" aria-label="What to train, in words"
 placeholder="8 islands over 50 Mbit/s, int4, 2000 steps, SmolLM2 LoRA" value="{{ text }}">
<button{% if not current %} class="first"{% endif %}>Read</button></form>
<p class="hint">A sentence becomes a configuration by rules. It is shown and checked; nothing runs before you start
it.</p>
<div id="understood"></div></div>
{% endmacro %}
"""

HOME = """{% extends "base" %}{% from "ask" import ask %}{% block body %}
<div class="bar between"><h1>Runs</h1><a class="button first" href="{{ base }}new">New run</a></div>
{{ ask("", "") }}
<form action="{{ base }}compare" method="get" id="runs">{% include "run-table" %}
<div class="bar"{% if briefs|length < 2 %} hidden{% endif %}><button id="compare" disabled>Compare the chosen
runs</button>
<span class="hint">Choose two or more: curves, tables and differences side by side.</span></div></form>
{% endblock %}
"""

RUN_TABLE = """{% if briefs %}<div class="panel scroll" id="run-table"><table><thead><tr>
<th></th><th>Run</th><th>Status</th><th class="n">Steps</th><th class="n">Validation</th><th class="n">Tokens</th>
<th class="n">Sent/island</th><th class="n">Wall-clock</th><th></th></tr></thead><tbody>
{% for b in briefs %}<tr><td><input type="checkbox" name="run" value="{{ b.name }}"
aria-label="choose {{ b.name }}"></td>
<td class="name"><a href="{{ base }}runs/{{ b.name|urlencode }}">{{ b.name }}</a>
{% if b.problem %}<div class="problem">{{ b.problem }}</div>{% endif %}</td>
<td><span class="status {{ b.status if b.status in known }}">{{ b.status }}</span></td>
{% for cell in (b.steps, b.quality, b.tokens, b.sent, b.wall) %}<td class="n">{{ cell }}</td>{% endfor %}
<td class="act">{% if not b.problem and b.steps %}<a class="button" href="{{ base }}report?run={{ b.name|urlencode }}"
 target="_blank" rel="noopener">Report</a>{% endif %}</td></tr>{% endfor %}
</tbody></table></div>{% else %}<div class="panel empty" id="run-table">No run in {{ root }} yet. Choose a recipe, or
say
what to train.</div>{% endif %}
"""

RECIPES = """{% extends "base" %}{% from "ask" import ask %}{% block body %}
<h1>New run</h1><p class="sub">Choose a recipe: you can change every field before anything starts. Choosing one of
your own
runs its file.</p>{{ ask("", "") }}
<div class="bar"><input id="filter" placeholder="Find a recipe" aria-label="Find a recipe" autocomplete="off"></div>
<div class="cards">{% for file, infos in files %}<div class="panel card" data-find="{{ file }}"><h3>{{ file }}</h3>
{% for info in infos %}<a href="{{ base }}new?recipe={{ info.name|urlencode }}"
data-find="{{ info.name }} {{ info.summary }}">
{{ info.name.split(":")[-1] }}<span>{{ info.summary }}</span></a>{% endfor %}</div>{% endfor %}</div>
{% endblock %}
"""

FORM_PAGE = """{% extends "base" %}{% from "ask" import ask %}{% block body %}
<h1>{{ judged.reference }}</h1><p class="sub">{{ summary }}</p>{{ ask(judged.reference, "") }}
<div class="columns"><div>
<div class="bar"><input id="filter" placeholder="Find a field" aria-label="Find a field" autocomplete="off"></div>
<form id="fields" data-recipe="{{ judged.reference }}" autocomplete="off">{% include "fields" %}</form></div>
<aside class="panel side" id="side" aria-live="polite">{% include "side" %}</aside></div>
{% endblock %}
"""

FIELDS = """<div id="rows" data-shape="{{ judged.shape }}">
{% for section, note, open, rows in sections %}
<details class="panel section" data-section="{{ section }}"{% if open %} open{% endif %}>
<summary>{{ section }} <small>{{ note }}</small><em></em></summary>
{% for row in rows %}{% set value = judged.given.get(row.path, row.value) %}
{% set before = judged.before.get(row.path, row.value) %}
<div class="row {{ row.kind }} depth-{{ row.depth }}{% if value != before %} changed{% endif %}"
data-path="{{ row.path }}"
 data-before="{{ before }}" data-find="{{ row.path }} {{ row.doc }}">
<label for="f-{{ row.path }}">{{ row.path.split(".", 1)[-1] if row.section else row.path }}</label>
<div class="control">
{% if row.kind == "switch" %}<input type="checkbox" id="f-{{ row.path }}" class="value"{% if value == "True" %}
checked{% endif %}>
<span style="flex:1"></span>
{% elif row.kind == "choice" %}<select id="f-{{ row.path }}" class="value">{% for c in row.choices %}
<option{% if c == value %} selected{% endif %}>{{ c }}</option>{% endfor %}</select>
{% else %}{% if row.kind == "part" and row.choices %}
<select class="choose" aria-label="choose {{ row.path }}">{% if row.chosen not in row.choices %}<option selected>{{
row.chosen }}</option>
{% endif %}{% for c in row.choices %}<option{% if c == row.chosen %} selected{% endif %}>{{ c }}</option>{% endfor
%}</select>{% endif %}
<input id="f-{{ row.path }}" class="value" value="{{ value }}" spellcheck="false"{% if row.kind == "number" %}
inputmode="decimal"{% endif %}>
{% endif %}<button type="button" class="undo" title="back to {{ before }}"
aria-label="undo {{ row.path }}">↺</button></div>
<p>{{ row.doc }}{% if row.chosen_doc %}{{ " " if row.doc }}<b>{{ row.chosen }}</b>: {{ row.chosen_doc }}{% endif %}</p>
<p class="problem" hidden></p></div>{% endfor %}</details>{% endfor %}</div>
"""

SIDE = """<h2>{{ judged.config.name }}</h2>
{% if judged.problems %}{% for path, message in judged.problems.items() %}<p class="problem">{{ message }}</p>{%
endfor %}
{% else %}<p class="good">Checked: it can start.</p>{% endif %}
<p class="hint">{{ islands }} islands, {{ judged.config.steps }} inner steps, a sync every {{ judged.config.sync.every
}}</p>
<div class="bar"><button class="first" id="start"{% if judged.problems %} disabled{% endif %}>Start</button>
<span class="problem" id="refused"></span></div>
<h2>Changed from the recipe</h2>{% include "diff" %}
<h2>The same in a terminal</h2><pre id="command">{{ judged.command }}</pre>
"""

DIFF = """{% if judged.given %}<table class="diff"><tbody>{% for path, value in judged.given.items() %}
<tr><td class="code">{{ path }}</td><td><del>{{ judged.before.get(path, "") }}</del> <ins>{{ value }}</ins>
{% if because and because.get(path) %}<div class="hint">“{{ because[path] }}”</div>{% endif %}
{% if judged.problems.get(path) %}<div class="problem">{{ judged.problems[path] }}</div>{% endif %}</td></tr>{% endfor
%}
</tbody></table>{% else %}<p class="hint">Nothing.</p>{% endif %}
"""

UNDERSTOOD = """<h2>{{ judged.reference }}</h2><p class="hint">{{ summary }}{% if because.get("recipe") %}
 (“{{ because["recipe"] }}”){% endif %}</p>{% include "diff" %}
{% for note in notes %}<p class="hint">{{ note }}</p>{% endfor %}
{% if left %}<p class="problem">Not understood: {{ left|join(", ") }}</p>{% endif %}
{% for path, message in judged.problems.items() if path not in judged.given %}<p class="problem">{{ message }}</p>{%
endfor %}
{% if not judged.problems %}<p class="good">Checked: it can start.</p>{% endif %}
<div class="bar"><a class="button first" href="{{ form_url }}">Open as a form</a></div>
"""

RUN = """{% extends "base" %}{% block body %}
<div id="run" data-name="{{ name }}"></div><h1>{{ name }}</h1>
<p class="sub"><span class="status" id="status"></span> <span id="steps"></span></p>
<div class="progress" id="progress"><i></i></div>
<div class="bar"><button id="stop" hidden>Stop and save</button><button id="resume" hidden>Resume</button>
<a class="button" id="report" href="{{ base }}report?run={{ name|urlencode }}" target="_blank" rel="noopener"
hidden>Report</a>
{% if again %}<a class="button" href="{{ again }}">New run like this one</a>{% endif %}
<span class="problem" id="refused"></span></div>
<div class="panel said" id="said" hidden></div><div id="tiles"></div><div id="warnings"></div>
<div id="plots" hidden><h2>Loss and bytes</h2><div class="plots">{% for i in range(6) %}{{ place("curve-%d" % i,
titles[i], "curve") }}
{% endfor %}</div><h2>Timeline of compute and transfer</h2>{{ key }}{{ place("timeline-0", "Timeline", "timeline") }}
<h2>Islands</h2><div id="islands"></div><div id="notes"></div></div>
<h2>Output</h2><pre class="tall" id="console"></pre>{{ configuration }}
{% endblock %}
"""

COMPARE = """{% extends "base" %}{% block body %}<h1>{{ names|length }} runs</h1>{{ table }}{{ warnings }}
<div class="bar"><a class="button" href="{{ report }}" target="_blank" rel="noopener">Report of all</a></div>
<h2>Quality and cost</h2><p class="hint">Drag to zoom, double-click to reset.</p>{{ legend }}
<div class="plots">{{ curves }}</div><h2>Timeline of compute and transfer</h2>{{ key }}{{ lines }}
<h2>Islands</h2>{{ islands }}<h2>Configuration: differences</h2>{{ configuration }}
<script type="application/json" id="figures">{{ figures }}</script>{% endblock %}
"""

FAILED = (
    """{% extends "base" %}{% block body %}<h1>{{ title }}</h1><p class="problem">{{ message }}</p>{% endblock %}"""
)

PAGES = Environment(
    loader=DictLoader(
        {
            "base": BASE,
            "ask": ASK,
            "home": HOME,
            "run-table": RUN_TABLE,
            "recipes": RECIPES,
            "form": FORM_PAGE,
            "fields": FIELDS,
            "side": SIDE,
            "diff": DIFF,
            "understood": UNDERSTOOD,
            "run": RUN,
            "compare": COMPARE,
            "failed": FAILED,
        }
    ),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)


def render(template: str, values: dict[str, object]) -> str:
    """One page, or a part of one. A value that is missing is an error, and every text is escaped."""
    return PAGES.get_template(template).render(values)
