"README.md is what nbs/index.ipynb says, its commands exist and its example runs"
import json,re,shutil,sys
import pytest
from conftest import bin,root,run
from readme import all_results,fill,results_table

text = (root/'README.md').read_text(encoding='utf8')
fenced = re.compile(r'^```(\w+)\n(.*?)^```', re.M|re.S)
targets = set(re.findall(r'^([a-z]+):.*## ', (root/'Makefile').read_text(), re.M))

def blocks(*langs): return [code for lang,code in fenced.findall(text) if lang in langs]
def commands(txt): return [l.split('#')[0].split() for code in txt for l in code.splitlines() if l.strip() and not l.lstrip().startswith('#')]

def test_readme_is_fresh(): run(sys.executable, root/'tools'/'readme.py', root, '--check')

def test_a_stale_readme_is_found(tmp_path):
    for d in ('nbs','benchmarks'): shutil.copytree(root/d, tmp_path/d, ignore=shutil.ignore_patterns('api','tutorials','explanations','experiments'))
    shutil.copy(root/'README.md', tmp_path)
    run(sys.executable, root/'tools'/'readme.py', tmp_path, '--check')
    with open(tmp_path/'README.md', 'a') as f: f.write('edited by hand\n')
    with pytest.raises(AssertionError, match='README.md is stale'): run(sys.executable, root/'tools'/'readme.py', tmp_path, '--check')

def test_commands_exist():
    "`make x` is a target of the Makefile, `ulmfit_t5 x` a command that explains itself"
    cmds = commands(blocks('sh','bash','shell','console'))
    assert ['make','demo'] in cmds and ['make','test'] in cmds
    assert {t for c in cmds if c[0]=='make' for t in c[1:] if '=' not in t} <= targets
    for c in cmds:
        if c[0]=='ulmfit_t5': run(bin/'ulmfit_t5', c[1], '--help')

def test_links_lead_somewhere():
    "Every relative link and picture of the README is a file of the checkout"
    links = [o.split('#')[0] for o in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'[a-z]+:|#', o)]
    assert [o for o in links if not (root/o).exists()]==[]

def test_example_runs(tmp_path):
    "The README's Python, as one program, in a fresh process away from the checkout"
    code = '\n\n'.join(blocks('python'))
    assert 'ulmfit_t5' in code, 'the README shows no Python example'
    (tmp_path/'readme_example.py').write_text(code, encoding='utf8')
    run(sys.executable, 'readme_example.py', cwd=tmp_path, timeout=300, MPLBACKEND='agg')

def test_results_table(tmp_path):
    "Rows of every run, in order, with machine and date; a run that lacks a key is refused by name"
    assert 'make bench' in results_table(tmp_path)
    row = dict(what='error, %', ours=6.125, peer=12, peer_name='TF-IDF', ratio=.5104)
    (tmp_path/'b.json').write_text(json.dumps(dict(machine='2 cores', date='2026-01-31', rows=[row])))
    (tmp_path/'a.json').write_text(json.dumps(dict(machine='box', cores=2, date='2026-01-31', order=1, peer_name='fastai', rows=[dict(what='first', unit='ms', ours=1, peer=2, ratio=2)])))
    md = fill('x <!-- results -->old<!-- /results --> y', tmp_path)
    assert md.index('| first, ms | 1 | 2 (fastai) | 2 |')<md.index('| error, % | 6.12 | 12 (TF-IDF) | 0.51 |')
    assert 'box, 2 cores, 2026-01-31; 2 cores, 2026-01-31.' in md and 'old' not in md and md.endswith('<!-- /results --> y')
    rows = [dict(row, what=o, note='n') for o in ('writing 40 words','writing 10 words')]
    (tmp_path/'generation.json').write_text(json.dumps(dict(machine='box', date='2026-01-31', rows=rows)))
    short,whole = results_table(tmp_path),all_results(tmp_path)
    assert 'writing 40' in short and 'writing 10' not in short
    assert 'writing 40' in whole and '- writing 10 words: n' in whole and '## a\n' in whole
    (tmp_path/'c.json').write_text(json.dumps(dict(machine='2 cores', rows=[dict(what='x')])))
    with pytest.raises(ValueError, match='c.json lacks date, ours, peer, ratio'): results_table(tmp_path)
