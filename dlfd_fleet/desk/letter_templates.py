"""The letters as Jinja templates, under the names of the files in ``desk.letters`` that may take their place."""

LETTER = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title %}Your request{% endblock %}</title>
<style>
@page { size: A4; margin: 25mm 22mm }
body { font: 12pt/1.5 Georgia, "Times New Roman", serif; color: #000; background: #fff; max-width: 40rem;
  margin: 2rem auto; padding: 0 1rem }
address { font-style: normal; white-space: pre-line; margin-bottom: 2.5rem }
h1 { font-size: 1.1rem; margin: 2rem 0 1rem } p, li { margin: 0 0 .8rem } .facts { margin: 2rem 0; font-size: .95em }
@media print { body { margin: 0; padding: 0 } }
</style>
</head>
<body>
<address>{{ sender }}</address>
{% if name %}<address><bdi>{{ name }}</bdi></address>{% endif %}
<p class="facts">{{ today | day }}<br>Our reference: {{ reference }}</p>
<h1>{{ self.title() }}</h1>
<p>{% if name %}Dear <bdi>{{ name }}</bdi>,{% else %}Dear Sir or Madam,{% endif %}</p>
{% block letter %}{% endblock %}
{% block rights %}
<p>You may complain to a supervisory authority at any time (Article 77 of the General Data Protection Regulation),
for instance where you live or work.{% if authority %} For us it is:{% endif %}</p>
{% if authority %}<address>{{ authority }}</address>{% endif %}
{% endblock %}
<p>Yours sincerely,</p>
<p>{{ sender.splitlines()[0] }}</p>
</body>
</html>
"""

RECEIVED = """{% extends "letter.html" %}
{% block title %}We have received your request to be forgotten{% endblock %}
{% block letter %}
<p>We received your request on {{ received | day }}. We train no model on your images any more.</p>
<p>We will delete your images. If a model was trained on them, we will change it so that it forgets them. You will hear
from us by <strong>{{ due | day }}</strong>. Should we need more time, we will tell you before that day, and why.</p>
<p>You may take your request back as long as we have not begun with it.</p>
{% endblock %}
"""

EXTENDED = """{% extends "letter.html" %}
{% block title %}We need more time for your request{% endblock %}
{% block letter %}
<p>We received your request to be forgotten on {{ received | day }}, and were to answer it by {{ first_due | day }}.</p>
<p>We need more time, and will answer by <strong>{{ due | day }}</strong>. The law allows this where a request is
complex or where there are many (Article 12(3) of the General Data Protection Regulation). The reason is:</p>
<p>{{ reason }}</p>
<p>Meanwhile we train no model on your images.</p>
{% endblock %}
"""

RIGHTS = """{% block rights %}
<p>If you think that we are wrong, you may</p>
<ul>
<li>complain to a supervisory authority (Article 77 of the General Data Protection Regulation), for instance where you
live or work{% if authority %}; for us it is the one named below{% endif %};</li>
<li>go to court (Article 79 of the General Data Protection Regulation).</li>
</ul>
{% if authority %}<address>{{ authority }}</address>{% endif %}
{% endblock %}
"""
"""Of a letter that says no: a complaint, and a court (Article 12(4))."""

REFUSED = (
    """{% extends "letter.html" %}
{% block title %}We cannot do what you asked{% endblock %}
{% block letter %}
<p>We received your request to be forgotten on {{ received | day }}. We have looked at it, and we refuse it, because
{{ ground }}.</p>
<p>{{ reason }}</p>
<p>If something changes, you may ask us again.</p>
{% endblock %}
"""
    + RIGHTS
)

WITHDRAWN = """{% extends "letter.html" %}
{% block title %}You have taken your request back{% endblock %}
{% block letter %}
<p>We received your request to be forgotten on {{ received | day }}. On {{ withdrawn | day }} you took it back.
{% if reason %}The reason that we noted is:</p>
<p>{{ reason }}{% endif %}</p>
<p>We may train models on your images again. You may ask us again at any time. If you did not take your request back,
tell us at once.</p>
{% endblock %}
"""

NO_DATA = (
    """{% extends "letter.html" %}
{% block title %}We hold no data of you{% endblock %}
{% block letter %}
<p>We received your request to be forgotten on {{ received | day }}. We looked for you among the people on our
images, and found no image of you. So there is nothing that we could delete, and we take no other action.</p>
<p>Of your request we keep your name, the day on which it came, how we verified who asked, and this answer, so that we
can show that we answered.</p>
<p>If you think that we have images of you under another name, tell us that name.</p>
{% endblock %}
"""
    + RIGHTS
)

FORGOTTEN = """{% extends "letter.html" %}
{% block title %}You are forgotten{% endblock %}
{% block letter %}
<p>We received your request to be forgotten on {{ received | day }}. This is what we did:</p>
<ul>
<li>Since {{ released | day }} we use a model that was changed to forget the images of everybody who had asked. If none
of your images was used to train it, nothing had to be changed for you. Before, we tested with attacks that guess
whether a model was trained on an image. Such tests show what can be found; they cannot prove that nothing is left.</li>
<li>On {{ purged | day }} we had deleted your images, and your name from our list of requests.</li>
{% if complete %}<li>On {{ complete | day }} no device that we know of had the earlier model any more, or it was taken
out of use.</li>
{% else %}<li>Devices that still have the earlier model are being given the new one.</li>
{% endif %}
</ul>
<p>We keep a code that is made from your name and one that is made from each image, so that we notice if they come back
by mistake. Your name and the images cannot be read from these codes.</p>
{% endblock %}
"""

TEMPLATES = {
    "letter.html": LETTER,
    "received.html": RECEIVED,
    "extended.html": EXTENDED,
    "refused.html": REFUSED,
    "withdrawn.html": WITHDRAWN,
    "no-data.html": NO_DATA,
    "forgotten.html": FORGOTTEN,
}
