"""Write README.md from nbs/index.ipynb: `readme.py ROOT [--check]`

Prose stays, code and its output are fenced, a picture made by a cell is saved under nbs/images, and the part between
`<!-- results -->` and `<!-- /results -->` is filled from benchmarks/results/*.json. Each of these files is one run:
`{"machine": "...", "date": "2026-01-31", "rows": [{"what": "TREC-6 test error", "ours": 6.1, "peer": 12.4, "ratio": 0.49}]}`.
By choice a row has a "unit" and a "peer_name", a run a "peer_name", "cores", and "order" (an integer that sorts the runs).
The README shows the rows of `SHORT`, which begin with one of the words given for their run, and every row of other runs; all rows of all runs stand in
benchmarks/RESULTS.md.
"""
import base64,json,re,sys
from pathlib import Path

HEAD = '| what | ours | peer, same run | ratio |','|---|---|---|---|'
OPEN,CLOSE = '<!-- results -->','<!-- /results -->'
KEYS = ['what','ours','peer','ratio']
SHORT = dict(trec6=('TREC-6 test error, forward','TREC-6 test error, both'), lm_step=('AWD-LSTM training step',), classifier=('classifier',),
    inference=('classifying token ids','classifying one text'), generation=('writing 40',),
    tokenise=('tokenising by SubwordTokenizer, no word met before, 1 process','tokenising by WordTokenizer'), streaming=('peak resident memory, streaming',),
    loaders=('loading batches for a language model, reviews of 250 tokens, shuffled','loading batches for a classifier, reviews'), optimizers=('AdamW update of a language model of paper',),
    span_corruption=('span corruption, 128 rows of 568',), t5_tasks=('T5 fine-tuned, mean',), t5_adapt=('T5, IMDb',), t5_step=('T5 training step',),
    t5_generate=('T5 writing',), rank_balance=('tokens shared',),
    attention_view=('picture of the attention to 512','longest input'), cleaning=('cleaning web pages',), lr_find=('distance of',),
    steering=('training step, cockpit and layer','click during training until it is applied, median','slowest click'), distributed=('language model in 2 processes: from the call','from a process','processes left'), packing=(), imdb_frozen=(), lm_init=(), lstm_rows=(), t5_start=(), t5_compare=(), plans=(), plans_scratch=())
_hidden = re.compile(r'^#\|\s*(hide|default_exp|export\w*|include:\s*false)\s*$', re.M)
_links = re.compile(r'(\]\()(?![a-z]+:|#|/)([^)\s]+)(\))')

def _num(x):
    if not isinstance(x, (int,float)): return '' if x is None else str(x)
    return f'{x:,.0f}' if abs(x)>=1000 else f'{x:.3g}'

def row_md(r, peer_name=None):
    "A row of the table; `peer_name` is the run's, for rows that name none"
    unit,peer = r.get('unit'),r.get('peer_name', peer_name)
    return f"| {r['what']}{f', {unit}' if unit else ''} | {_num(r['ours'])} | {_num(r['peer'])}{f' ({peer})' if peer else ''} | {_num(r['ratio'])} |"

def run_rows(fn, every=False):
    "Table rows of one run, and the line that says where and when it ran; but for `every`, those that the README shows"
    d = json.loads(fn.read_text(encoding='utf8'))
    lacks = [k for k in ('machine','date','rows') if k not in d] + [k for k in KEYS if any(k not in r for r in d.get('rows',[]))]
    if lacks: raise ValueError(f"{fn.name} lacks {', '.join(lacks)}: write it as the top of tools/readme.py says")
    cores = f", {d['cores']} core{'s'[:d['cores']>1]}" if 'cores' in d else ''
    rows = [r for r in d['rows'] if every or r['what'].startswith(SHORT.get(fn.stem, ''))]
    place = list(SHORT).index(fn.stem) if fn.stem in SHORT else 99
    return d.get('order', place),[row_md(r, d.get('peer_name')) for r in rows],f"{d['machine']}{cores}, {d['date']}"

def results_table(folder):
    "Markdown table of every run in `folder`, with machine and date below; a sentence where there is no run yet"
    runs = sorted((run_rows(o) for o in sorted(folder.glob('*.json'))), key=lambda r: r[0])
    if not runs: return 'No figure is stored yet: `make bench` measures them on your machine.'
    places = dict.fromkeys(r[2] for r in runs if r[1])
    return '\n'.join([*HEAD] + [l for r in runs for l in r[1]]
        + ['', f"Measured on: {'; '.join(places)}."])

def all_results(folder):
    "Every row of every run, with its command, machine and date, as a page"
    out = ['<!-- Written by tools/readme.py from the files in results/. -->', '# Results', 'How they are measured: [README](README.md). A ratio says how many times better ours is.']
    for fn in sorted(folder.glob('*.json')):
        _,rows,place = run_rows(fn, every=True)
        d = json.loads(fn.read_text(encoding='utf8'))
        notes = dict.fromkeys(f"- {r['what']}: {r['note']}" for r in d['rows'] if r.get('note'))
        out += [f'## {fn.stem}', f"`{d.get('command', fn.stem)}`, {place}", '\n'.join([*HEAD,*rows]), *(['\n'.join(notes)] if notes else [])]
    return '\n\n'.join(out)+'\n'

def fill(src, folder):
    "`src` with the part between the markers replaced by the results table"
    if OPEN not in src: return src
    if CLOSE not in src: raise ValueError(f"{OPEN} is never closed by {CLOSE} in nbs/index.ipynb")
    a,rest = src.split(OPEN, 1)
    return f'{a}{OPEN}\n{results_table(folder)}\n{CLOSE}{rest.split(CLOSE, 1)[1]}'

def output_md(o, name, pics):
    "One output as markdown; a picture is put in `pics` under its path"
    if o['output_type']=='stream': return f"```text\n{''.join(o['text']).rstrip()}\n```"
    data = o.get('data', {})
    if 'image/png' in data:
        fn = f'nbs/images/{name}.png'
        pics[fn] = base64.b64decode(''.join(data['image/png']))
        return f'![]({fn})'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    txt = ''.join(data.get('text/plain', '')).rstrip()
    return f'```text\n{txt}\n```' if txt else ''

def cell_md(c, folder, pics):
    "A cell as markdown: hidden cells vanish, directives are dropped, links are made relative to the root"
    src = ''.join(c['source']).strip()
    if c['cell_type']=='markdown': return _links.sub(r'\1nbs/\2\3', fill(src, folder)).replace('](nbs/../', '](')
    if c['cell_type']!='code' or not src or _hidden.search(src): return ''
    code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|')).strip()
    outs = [output_md(o, f"readme_{c['id']}_{i}", pics) for i,o in enumerate(c.get('outputs', []))]
    return '\n\n'.join([f'```python\n{code}\n```'] + [o for o in outs if o])

def readme(root):
    "The files that make the README: {path relative to `root`: bytes}"
    pics,nb = {},json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf8'))
    parts = [o for c in nb['cells'] if (o:=cell_md(c, root/'benchmarks'/'results', pics))]
    note = '<!-- Written by tools/readme.py from nbs/index.ipynb. Edit that, not this. -->'
    page = {'benchmarks/RESULTS.md':all_results(root/'benchmarks'/'results').encode('utf8')}
    return {'README.md':'\n\n'.join([note]+parts).encode('utf8')+b'\n', **page, **pics}

def main(root, check=False):
    "Write the README; or, with `check`, exit with a sentence where it is stale"
    for fn,b in readme(root).items():
        p = root/fn
        if check and (not p.exists() or p.read_bytes()!=b): sys.exit(f'{fn} is stale: run `python tools/readme.py .`')
        if check: continue
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(b)

if __name__=='__main__': main(Path(sys.argv[1]), '--check' in sys.argv)
