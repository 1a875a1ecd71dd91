"""The pages as Jinja templates. They are a module because Flower's app bundle carries no HTML file to a server."""

BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% block title %}{% endblock %}</title>
<style>
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #23282d; --soft: #5c6670; --line: #dfe2e0; --wash: #f3f4f0;
  --link: #1a5a96; --forget: #b3261e; --unseen: #1f6fb4; --retain: #7a8288;
  --good: #1d6b42; --open: #8a5a00; --bad: #a32018 }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e2e5e7; --soft: #9ba5ad; --line: #31383e;
  --wash: #1d2226; --link: #7db8ee; --forget: #ff8a80; --unseen: #7db8ee; --retain: #98a2a9;
  --good: #6fcf97; --open: #e6b34d; --bad: #ff8a80 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, "Segoe UI", sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.25; margin: .2rem 0 1.2rem; font-weight: 600; max-width: 26em }
h2 { font-size: 1.2rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); font-weight: 600 }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; font-weight: 600 }
p, ul { max-width: 44rem; margin: .6rem 0 } ul { padding-left: 1.2rem } li { margin: .35rem 0 }
a { color: var(--link) }
.eyebrow, .note, figcaption, footer { color: var(--soft); font-size: .875rem }
.eyebrow { margin: 0 } .lead p { font-size: 1.08rem }
.verdict { display: inline-block; border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .7rem;
  font-size: .8125rem; font-weight: 600; letter-spacing: .04em; white-space: nowrap }
.PASS { color: var(--good) } .INCONCLUSIVE { color: var(--open) } .FAIL { color: var(--bad) }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1.1rem 1.5rem; margin: 1.8rem 0 0;
  padding: 1.2rem; background: var(--wash); border-radius: .4rem }
dt { color: var(--soft); font-size: .8125rem } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap } tbody th { font-weight: 500 }
td.number { white-space: nowrap } .why { display: block; color: var(--soft); font-weight: 400; font-size: .8125rem }
tbody th { min-width: 8rem }
code { font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere }
.name { white-space: nowrap }
pre { background: var(--wash); padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto }
.strip { display: block; width: 11rem; height: 1.5rem }
.strip .margin { fill: var(--unseen); opacity: .16 } .strip .chance { stroke: var(--soft); stroke-dasharray: 1.5 1.5 }
.strip .rail { stroke: var(--line) } .strip .bounds { stroke: var(--forget); stroke-width: 2 }
.strip .value { fill: var(--forget) }
figure { margin: 1rem 0 } figure svg, figure img { display: block; width: 100%; height: auto; max-width: 34rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; max-width: 46rem }
details { margin: .8rem 0 } summary { cursor: pointer; color: var(--link) }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line) }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 3rem } h1 { font-size: 1.5rem }
  dl { grid-template-columns: repeat(2, 1fr); padding: 1rem } .strip { width: 8rem }
  table { width: max-content; min-width: 100%; max-width: 52rem } th, td { padding-right: .8rem } tbody th { max-width: 11rem } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --wash: #f4f4f4;
  --link: #000; --forget: #b3261e; --unseen: #1f6fb4; --retain: #7a8288; --good: #1d6b42; --open: #8a5a00; --bad: #a32018 }
  body { font-size: 10.5pt } main { max-width: none; padding: 0 } .wide { overflow: visible }
  h2, h3 { break-after: avoid } tr, figure { break-inside: avoid } }
</style>
</head>
<body><main>
{% macro verdict(outcome) %}<span class="verdict {{ outcome }}">{{ outcome }}</span>{% endmacro %}
{% macro strip(estimate, margin) -%}{% if not estimate.says_nothing %}
<svg class="strip" viewBox="0 0 110 15" role="img" aria-label="{{ estimate }} on a scale from 0 to 1">
<rect class="margin" x="{{ 5 + 100 * (0.5 - margin) }}" y="1" width="{{ 200 * margin }}" height="13"/>
<line class="rail" x1="5" x2="105" y1="7.5" y2="7.5"/><line class="chance" x1="55" x2="55" y1="1" y2="14"/>
<line class="bounds" x1="{{ 5 + 100 * estimate.low }}" x2="{{ 5 + 100 * estimate.high }}" y1="7.5" y2="7.5"/>
<circle class="value" cx="{{ 5 + 100 * estimate.value }}" cy="7.5" r="3.2"/></svg>
{%- endif %}{% endmacro %}
{% macro scores(models) %}
<div class="wide"><table>
<thead><tr><th>score</th>{% for name in models %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, title in score_titles.items() %}
<tr><th scope="row">{{ title }}</th>{% for one in models.values() %}<td class="number">{{ one[name] | score }}</td>{% endfor %}</tr>
{%- endfor %}</tbody>
</table></div>
{% endmacro %}
{% macro settings_table(settings, title) %}
<details><summary>{{ title }}</summary>
<div class="wide"><table><tbody>{% for name, value in settings.items() %}
<tr><th scope="row"><code>{{ name }}</code></th><td><code>{{ value | tojson }}</code></td></tr>{% endfor %}</tbody></table></div>
</details>
{% endmacro %}
{% block body %}{% endblock %}
</main></body>
</html>
"""

ERASURE = """{% extends "base" %}
{% block title %}Erasure report {{ report.job }}{% endblock %}
{% block body %}
<header>
<p class="eyebrow">Erasure report · {{ report.job }}</p>
<h1>{{ words.headline(report) }}</h1>
<div class="lead">{% for line in in_short %}<p>{{ line }}</p>{% endfor %}</div>
<dl>
<div><dt>Verdict</dt><dd>{{ verdict(report.verdict.outcome.value) if report.verdict else "none" }}</dd></div>
<div><dt>Released</dt><dd>{{ (report.settled_at | moment) if report.released else "no" }}</dd></div>
<div><dt>Earliest deadline</dt><dd>{{ report.first_deadline }}</dd></div>
<div><dt>Erasure epoch</dt><dd>{{ report.epoch }}{{ "" if report.released else " (unchanged)" }}</dd></div>
<div><dt>Sites that took part</dt><dd>{{ report.sites | length }}{% if report.absent %}, {{ report.absent | length }} absent at the end{% endif %}</dd></div>
<div><dt>Images purged</dt><dd>{{ report.purged_images }}</dd></div>
</dl>
</header>

<section><h2>What was asked</h2>
<p>{{ words.asked(report) }}</p>
<p>The coordinator knows requests by ids of this job alone, and never a name. Who a request is of, only its site can tell: <code>dlfd-fleet forget show ID</code>.</p>
<div class="wide"><table>
<thead><tr><th>request</th><th>site</th><th>asked</th><th>deadline</th><th>result</th></tr></thead>
<tbody>{% for one in report.asked %}
<tr><th scope="row"><code class="name">{{ one.request }}</code></th><td><code class="name">{{ one.site }}</code></td><td class="number">{{ one.asked_at }}</td>
<td class="number">{{ one.deadline }}</td><td>{{ one | result(report, acknowledged_later) }}</td></tr>
{%- endfor %}</tbody></table></div>
</section>

<section><h2>What was done</h2>
<p>{{ words.done(report) }}{% if report.exactness %} {{ report.exactness }}{% endif %}</p>
{% for sentence in words.aimed(report) %}<p>{{ sentence }}</p>{% endfor %}
{% if not report.nothing_to_unlearn %}
{% for sentence in words.weights(report) %}<p>{{ sentence }}</p>{% endfor %}
{% if report.parent %}<p>Starting from the model whose weights have the SHA-256 <code>{{ report.parent }}</code>:</p>{% endif %}
{% if report.way_chosen %}<p>{{ report.way_chosen }}</p>{% endif %}
<ul>
{% if report.way == "retrain" %}<li>The model was trained anew at the sites on everybody else, as it was trained first.</li>{% else %}
<li>Sites whose people asked ran {{ words.method(report) }} on them{% if report.readings %}; all sites then
trained on everybody else, to keep the model useful{% elif "repair" in report.phases %}; they and a random sample of the other sites then
trained on everybody else, for the model had lost some of its use{% endif %}.{% if report.readings and not report.attempts_made %} {{ words.count(report.readings | rejectattr("round", "equalto", 0) | list | length, "round") }} in {{ words.count(report.attempts, "attempt") }}.{% endif %}</li>
{% for attempt in report.attempts_made %}<li>{{ words.course(attempt) }}</li>{% endfor %}

{% set by_sites = report.attempts_made | rejectattr("aim", "equalto", "fleet-gate") | list or report.attempts and not report.readings %}
{% if by_sites %}<li>Each of these sites measured by itself when to stop.</li>{% endif %}

{% if report.readings and report.readings[0].utility is none %}<li>After each round a gate measured accuracy on people whom the model is trained on: there are no others.</li>
{% elif report.readings or not by_sites %}<li>After each round a gate measured the model on people kept for that; the evidence below is from others, on whom no gate had measured.</li>{% endif %}{% endif %}

{% if "relearned" in report.models %}<li>The result was trained on as any later round would, and attacked again; that copy was thrown away.</li>{% endif %}
{% if "retrained" in report.models and report.way == "unlearn" %}<li>A model was trained anew without the people, to compare{{ ", and was released instead" if report.retrained }}.</li>{% endif %}
{% if report.files %}<li>The model was exported, and each exported file was attacked by itself.</li>{% endif %}
</ul>
{% if gate_plot %}<figure>{{ gate_plot | safe }}<figcaption>What the gate saw{% if report.readings[0].utility is not none %} on validation people{% endif %}. 0.5 (dotted) is guessing.</figcaption></figure>{% endif %}
{% if report.phases %}
<div class="wide"><table>
<thead><tr><th>step</th><th>times</th><th>seconds</th><th>sites' seconds, sum</th><th>longest site</th><th>coordinator's</th><th>MB to sites</th><th>MB from sites</th><th>most of a site</th></tr></thead>
<tbody>{% for name, phase in report.phases.items() if name != "champion" %}
<tr><th scope="row">{{ words.step(name) }}</th><td class="number">{{ phase.steps }}</td>
{% for seconds in (phase.seconds, phase.site_seconds, phase.longest_site_seconds, phase.coordinator_seconds) %}<td class="number">{{ "%.1f" | format(seconds) }}</td>{% endfor %}
{% for bytes in (phase.bytes_to_sites, phase.received_bytes, phase.most_bytes_of_a_site) %}<td class="number">{{ "%.1f" | format(bytes / 1e6) }}</td>{% endfor %}</tr>
{%- endfor %}
<tr><th scope="row">in all</th><td></td><td class="number">{{ "%.1f" | format(report.seconds) }}</td>
<td class="number">{{ "%.1f" | format(report.phases.values() | sum(attribute="site_seconds")) }}</td><td></td>
<td class="number">{{ "%.1f" | format(report.phases.values() | sum(attribute="coordinator_seconds")) }}</td>
<td class="number">{{ "%.1f" | format(report.phases.values() | sum(attribute="bytes_to_sites") / 1e6) }}</td>
<td class="number">{{ "%.1f" | format(report.phases.values() | sum(attribute="received_bytes") / 1e6) }}</td><td></td></tr>
</tbody></table></div>{% endif %}
{% endif %}</section>

<section><h2>The evidence</h2>
{% if report.verdict %}
<p>{{ verdict(report.verdict.outcome.value) }} at margin {{ words.margin(report.verdict) }}, power {{ "%.2f" | format(report.verdict.power) }}:</p>
<ul>{% for reason in report.verdict.reasons %}<li>{{ reason }}</li>{% endfor %}</ul>
{% if words.measured(report) %}<p>{{ words.measured(report) }}</p>{% endif %}
{% if report.procedure %}<p>{{ report.procedure }}</p>{% endif %}
{% else %}<p>The job ended before anything was judged.</p>{% endif %}
{% if tried %}
<h3>Attacks that were tried</h3>
{% if not measured %}<p>None: no people never trained on were audited, nor a retrained model, so there was nothing to compare with.</p>
{% else %}
{% if beside %}
<p>Nobody was audited who was never trained on. So AUC is the chance that an image of somebody who asked has a lower loss than
one of a retained person. What it is in a model that never saw those who asked, the retrained model shows. {% else %}
<p>The attack calls an image a member if its loss is low (arXiv 1709.01604). AUC is the chance that it puts an image of
somebody who asked before one of somebody never trained on. {% endif %}
In the drawing the dotted line is 0.5, the band the margin
around it, the bar 95% bounds over people.</p>
<div class="wide"><table>
<thead><tr><th>on</th><th>AUC [95%], from 0 to 1</th><th>attack's accuracy [95%]</th></tr></thead>
<tbody>{% for what, why, score in tried %}{% set auc = score.mia_auc or score.retain_auc %}{% if auc %}
<tr><th scope="row">{{ what }}<span class="why">{{ why }}</span></th><td class="number">{{ auc | score }}{{ strip(auc, margin) }}</td><td class="number">{{ score.mia_accuracy | score }}</td></tr>
{%- endif %}{% endfor %}
{% if control %}<tr><th scope="row">{{ judged }} model, two groups never trained on<span class="why">the negative control: does the attack find a difference where there is none?</span></th>
<td class="number">{{ control | score }}{{ strip(control, margin) }}</td><td>-</td></tr>{% endif %}
</tbody></table></div>{% endif %}

<h3>Scores before and after</h3>
<p class="note">Fractions, with 95% bounds by resampling people. NoMUS rewards a model that collapses; read it beside the balanced accuracy.</p>
{{ scores(columns) }}
{% endif %}
{% if compared %}
<h3>Beside the retrained model</h3>
<ul>{% for sentence in compared %}<li>{{ sentence }}</li>{% endfor %}</ul>{% endif %}
{% if loss_plots %}
<h3>How the losses are spread</h3>
<p class="note">A model that remembers has low losses for those who asked (forget), like those it was trained on (retain), and
higher ones for people it never saw (unseen).</p>
<div class="plots">{% for plot in loss_plots %}<figure>{{ plot | safe }}</figure>{% endfor %}</div>{% endif %}
</section>

<section><h2>The files</h2>
{% if report.files %}
<div class="wide"><table>
<thead><tr><th>file</th><th>released</th><th>verdict</th><th>attack AUC [95%]</th><th>MB</th><th>beside torch</th></tr></thead>
<tbody>{% for form, file in report.files.items() %}
<tr><th scope="row">{{ file.name }} ({{ form }})<br><code>{{ file.sha256 }}</code></th><td>{{ "yes" if form in report.released_files else "no" }}</td>
<td>{{ verdict(file.verdict.outcome.value) if file.verdict else "-" }}</td><td class="number">{{ (file.scores.mia_auc or file.scores.retain_auc) | score }}</td>
<td class="number">{{ "%.1f" | format(file.size_bytes / 1e6) }}</td>
<td>largest difference of a probability {{ "%.2g" | format(file.max_abs_difference) }}{% if file.agreement is not none %}, same class on {{ "%.1f" | format(100 * file.agreement) }}% of {{ words.count(file.compared_images, "image") }}{% endif %}</td></tr>
{%- endfor %}</tbody></table></div>
{% else %}<p>No file was exported.</p>{% endif %}
{% for form, reason in report.refused_files.items() %}<p>No {{ form }} file was released: {{ reason }}</p>{% endfor %}
</section>

<section><h2>Revoked versions</h2>
{% if report.revoked %}<p>Every model under epoch {{ report.epoch }} remembers somebody who asked, and is revoked:</p>
<ul>{% for one in report.revoked %}<li>epoch {{ one.epoch }}, of job <code>{{ one.job }}</code></li>{% endfor %}</ul>
{% else %}<p>This job revoked no version.</p>{% endif %}
</section>

<section><h2>Sites</h2>
<p>A site that acknowledges has purged the images of the requests that were served, and from then on works on no model under the epoch.</p>
<div class="wide"><table>
<thead><tr><th>site</th><th>requests</th><th>images of those who asked</th><th>images to train on</th><th>purge</th></tr></thead>
<tbody>{% for site in report.sites %}
<tr><th scope="row"><code class="name">{{ site.site }}</code></th><td class="number">{{ site.requests }}</td><td class="number">{{ site.forget_images }}</td><td class="number">{{ site.training_images }}</td>
<td>{{ site.site | purge(report, acknowledged_later) }}</td></tr>
{%- endfor %}{% for name, reason in report.absent.items() %}{% if name not in taking_part %}
<tr><th scope="row"><code class="name">{{ name }}</code></th><td colspan="3">took no part: {{ reason }}</td><td>{{ name | purge(report, acknowledged_later) }}</td></tr>
{%- endif %}{% endfor %}</tbody></table></div>
</section>

<section><h2>Delivery</h2>
{% if not report.released %}<p>No model was released, so there is nothing to deliver.</p>
{% elif delivery is none %}<p>This coordinator delivers to no devices. {{ complete }}</p>
{% elif delivery is string %}<p>How far devices are is not known, and no request is closed until it is: {{ delivery }}</p>
{% else %}
<p>{{ delivery.sentence() }}</p>
<div class="wide"><table><tbody>
<tr><th scope="row">published</th><td>{% if delivery.published_at %}{{ delivery.published_at | moment }}{% else %}never{% endif %}</td></tr>
<tr><th scope="row">least epoch that may run</th><td>{{ delivery.minimum_epoch }}</td></tr>
<tr><th scope="row">devices known</th><td>{{ delivery.devices }}</td></tr>
<tr><th scope="row">purged every older model</th><td>{{ delivery.purged }}</td></tr>
<tr><th scope="row">retired, with a reason</th><td>{{ delivery.retired }}</td></tr>
{%- for name, reason in delivery.waiting.items() %}
<tr><th scope="row">waiting for {{ name }}</th><td>{{ reason }}</td></tr>
{%- endfor %}{% for name, reason in delivery.excepted.items() %}
<tr><th scope="row">exception: {{ name }}</th><td>{{ reason }}</td></tr>
{%- endfor %}
</tbody></table></div>
{% endif %}
</section>

<section><h2>Limits of the evidence</h2>
<ul>{% for sentence in words.limits(report, acknowledged_later) %}<li>{{ sentence }}</li>{% endfor %}</ul>
</section>

<section><h2>Software and settings</h2>
<p>{% for name, number in report.software.items() %}{{ name }} {{ number }}{{ ", " if not loop.last else "." }}{% endfor %}</p>
{{ settings_table(report.settings, "The " ~ report.settings | length ~ " settings that govern an erasure") }}
<p class="note">SHA-256 of the settings: <code>{{ report.settings_sha256 }}</code></p>
</section>

<footer>
<p>Made of <code>report.json</code>, SHA-256 <code>{{ digest }}</code>.{% if report.released %} The coordinator's signed
<code>certificate.json</code> names this digest and those of the files; to check it, with the key of a coordinator that you trust:{% endif %}</p>
{% if report.released %}<pre><code>dlfd-fleet certificate verify certificate.json --key KEY.pub.pem --report report.json</code></pre>{% endif %}
</footer>
{% endblock %}
"""

PROCEDURE = """{% extends "base" %}
{% block title %}Procedure certificate {{ certificate.certificate }}{% endblock %}
{% block body %}
<header>
<p class="eyebrow">Procedure certificate · {{ certificate.certificate }}</p>
<h1>{{ words.count(certificate.runs, "run") }} of training, erasure and audit on {{ certificate.data }}</h1>
<p>In each run {{ certificate.marked }} people were marked. {% if certificate.labels == "exchanged" %}Their labels were exchanged, so that a model surely remembers those it is trained on.
{% else %}They are ordinary people, with labels of their own. {% endif %}A fair coin said who of them was trained on, and then asked to be forgotten. The same audit judged the original, in which nothing is unlearned; the erased
model; and one that was retrained without them. This is no certificate of an erasure, and nothing here proves that a model has forgotten.</p>
</header>
<section><h2>What was measured</h2>
<p class="note">In brackets: exact {{ "%.0f" | format(100 * certificate.confidence) }}% bounds (Clopper and Pearson). SD: over runs. Made {{ certificate.made_at | moment }}.</p>
<div class="wide"><table><tbody>{% for name, value in certificate.rows() %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</tbody></table></div>
</section>
<section><h2>What it holds for</h2>
<p>For erasures under the same settings, of about as many people, which aim at the same and whose audits rest on the same evidence.{% if certificate.labels == "exchanged" %} People with exchanged labels are remembered better than most, and look like no stranger that the audit knows.{% endif %}</p>
{{ settings_table(certificate.settings, "The " ~ certificate.settings | length ~ " settings that count") }}
<p class="note">SHA-256 of these settings: <code>{{ certificate.settings_sha256 }}</code></p>
</section>
{% endblock %}
"""

SINGLE = """{% extends "base" %}
{% block title %}Unlearning report{% endblock %}
{% block body %}
<header>
<p class="eyebrow">Unlearning report · one model, no fleet</p>
<h1>{{ words.count(result.forgotten_people, "person") if result.forgotten_people == 1 else result.forgotten_people ~ " people" }} to be forgotten:
{{ "the new model is good by its gate and audit" if result.success else "the new model did not succeed" }}</h1>
<p>{{ verdict(result.verdict.outcome.value) }} {{ words.outcome(result.verdict) }}</p>
<ul>{% for reason in result.reasons %}<li>{{ reason }}</li>{% endfor %}</ul>
<p>{{ words.count(result.forgotten_images, "image") }} by {{ words.method(result) }}{% if result.rounds %} in {{ words.count(result.rounds, "round") }}{% endif %}, {{ "%.0f" | format(result.seconds) }} s.
{% if result.own_answers %}It aimed at what the model itself said of changed copies of the images. {% endif %}{% if result.unlearned.unseen_images %}The comparison is with people never
trained on, not with a retrained model.{% endif %} Nothing here proves that a model has forgotten.</p>
</header>
<section><h2>Scores before and after</h2>
<p class="note">Fractions, with 95% bounds by resampling people.</p>
{{ scores(columns) }}
{% if result.relearned %}<p>A copy was trained on as any later training would, and attacked again: AUC {{ result.relearned.mia_auc | score }}.</p>{% endif %}
</section>
<section><h2>How the losses are spread</h2>
<div class="plots">{% for plot in loss_plots %}<figure>{{ plot | safe }}</figure>{% endfor %}</div></section>
<section><h2>Settings</h2>
{{ settings_table(result.settings, "The " ~ result.settings | length ~ " settings that it ran under") }}</section>
<footer><p>Weights unlearned from: SHA-256 <code>{{ result.parent }}</code></p></footer>
{% endblock %}
"""
