"The documentation builds with warnings as errors, has a page for every module, and its links lead somewhere"
import re,sys
from html import unescape
from urllib.parse import unquote
import pytest
from conftest import root,run

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Built pages"
    d = tmp_path_factory.mktemp('docs')
    run(sys.executable, root/'tools'/'docs_src.py', d/'src')
    run(sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', d/'src', d/'html')
    return d/'html'

def test_every_notebook_has_a_page(site):
    nbs = [o.relative_to(root/'nbs') for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts]
    pages = {o.relative_to(site).as_posix() for o in site.rglob('*.html')}
    want = {(o.parent/re.sub(r'^\d+[a-zA-Z0-9]*_', '', o.stem)).as_posix() for o in nbs}-{'index'}|{'overview'}
    assert {f'{o}.html' for o in want} <= pages

def test_pages_stand_in_the_order_of_their_notebooks(site):
    "Lessons one after the other, modules from the lowest layer up: by number, which the names of pages do not show"
    html = (site/'index.html').read_text(encoding='utf8')
    for d in ('tutorials','api'):
        want = [f"{d}/{re.sub(r'^[0-9]+[a-zA-Z0-9]*_', '', o.stem)}.html" for o in sorted((root/'nbs'/d).glob('*.ipynb'))]
        at = [html.find(f'href="{o}"') for o in want]
        assert -1 not in at and at==sorted(at)

def test_reference_is_there(site):
    "A function's page states its signature and its docstring"
    html = re.sub(r'<[^>]+>', '', (site/'api'/'core.html').read_text(encoding='utf8'))
    assert 'sha256_file' in html and 'SHA-256 of a file’s bytes' in unescape(html).replace("'", '’')

def dead_links(d):
    "Local links of every page under `d` whose file or anchor is absent"
    ids,dead = {},[]
    for p in d.rglob('*.html'):
        if '_static' in p.parts: continue
        ids[p.resolve()] = set(re.findall(r'\b(?:id|name)="([^"]+)"', p.read_text(encoding='utf8')))
    for p in ids:
        body = p.read_text(encoding='utf8')
        main = body[body.find('<article'):body.find('</article>')] if '<article' in body else body
        for href in re.findall(r'href="([^"]+)"', main):
            if re.match(r'[a-z]+:|//', href): continue
            fn,_,anchor = unquote(unescape(href.split('?')[0] if '#' not in href else href)).partition('#')
            to = (p.parent/fn).resolve() if fn else p
            if not to.exists() or (anchor and to in ids and anchor not in ids[to]): dead.append(f'{p.relative_to(d.resolve())} -> {href}')
    return sorted(dead)

def test_links_lead_somewhere(site): assert dead_links(site)==[]

def test_dead_links_are_found(tmp_path):
    (tmp_path/'a.html').write_text('<article><a href="b.html">b</a><a href="#x">x</a><a href="#y">y</a><p id="x"></p><a href="https://e.org">e</a></article>')
    assert dead_links(tmp_path)==['a.html -> #y','a.html -> b.html']
