"""The text of the page at /: plain HTML that needs nothing else."""

from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

COUNTS = {"photos": "photos", "places": "places", "dim": "dimensions"}

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$refresh<title>loci</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --edge: light-dark(#d8dde3, #39424d); --soft: light-dark(#f4f6f8, #1b2128);
  --quiet: light-dark(#5a6672, #9aa7b4); --link: light-dark(#0b62a8, #7cc0ff); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem; max-width: 44rem; font: 1rem/1.6 system-ui, sans-serif;
  background: light-dark(#fff, #12161b); color: light-dark(#1b232b, #e6ebf0); }
h1 { margin: 0; font-size: 2.25rem; letter-spacing: -.02em; }
h2 { margin: 2.25rem 0 .5rem; font-size: 1.1rem; }
p { margin: .4rem 0; }
a { color: var(--link); }
.lead { color: var(--quiet); font-size: 1.1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0 .75rem; }
dl div { padding: .6rem .9rem; border: 1px solid var(--edge); border-radius: .6rem; background: var(--soft);
  min-width: 0; }
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
pre { margin: .5rem 0; padding: .9rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--edge);
  border-radius: .6rem; background: var(--soft); }
code { font: .92em/1.5 ui-monospace, monospace; }
.quiet { color: var(--quiet); }
.trouble { margin: 1.5rem 0 0; padding: .8rem 1rem; border-left: .25rem solid #c77700;
  background: light-dark(#fff6e5, #2b2312); border-radius: .3rem; }
</style>
</head>
<body>
<header>
<h1>loci</h1>
<p class="lead">Tells where a photo was taken.</p>
</header>
<main>
$state
<h2>Ask it</h2>
<pre><code>curl -F image=@photo.jpg '${base}v1/query?k=5'</code></pre>
<p>The answer names the nearest places, the position where the photos have one, and the photos that
show it.</p>
<h2>Look around</h2>
<p>$links</p>
</main>
</body>
</html>
""")


def render(base_url: str, info: Mapping[str, Any] | None, trouble: str | None, *, docs: bool) -> str:
    """Write the page for a service at `base_url` that serves `info`, or cannot for a reason."""
    links = ['<a href="v1/places">places</a>', '<a href="v1/places.geojson">GeoJSON</a>']
    links += ['<a href="readyz">readiness</a>', '<a href="metrics">metrics</a>']
    if docs:
        links.insert(0, '<a href="docs">every request, documented</a>')
    return PAGE.substitute(
        base=escape(base_url),
        links=" · ".join(links),
        refresh='<meta http-equiv="refresh" content="5">\n' if trouble else "",
        state=_trouble(trouble) if info is None else _facts(info),
    )


def _facts(info: Mapping[str, Any]) -> str:
    tiles = "\n".join(f"<div><dt>{label}</dt><dd>{info[name]:,}</dd></div>" for name, label in COUNTS.items())
    model, snapshot = escape(str(info["model"])[:16]), escape(str(info["snapshot"]))
    return (
        f"<dl>\n{tiles}\n</dl>\n"
        f'<p class="quiet">Model <code>{model}</code>, snapshot <code>{snapshot}</code></p>'
    )


def _trouble(reason: str | None) -> str:
    return f'<p class="trouble" role="status">Not ready: {escape(reason or "unknown")}.</p>'
