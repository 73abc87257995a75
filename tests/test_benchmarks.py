"Each benchmark runs in its quick form and writes results in the one format; kept results have it too. No test looks at a time"
import json,os,subprocess,sys
from pathlib import Path
import pytest
from conftest import root,run

bench = root/'benchmarks'
NEEDS = dict(what=str, unit=str)
MORE = dict(peer_name=str, better=str, note=str)
TOP = dict(name=str, command=str, date=str, machine=str, cores=int, versions=dict, rows=list)
STRICT = TOP | dict(threads=int, seconds=int, quick=bool)
SCRIPTS = ['lm_step','classifier','inference','generation','tokenise','streaming','span_corruption','packing','loaders','optimizers','lm_init','lstm_rows','plans','t5_step',
    't5_generate','trec6','imdb_labels','imdb_frozen','cleaning','attention_view','rank_balance','t5_tasks','t5_adapt','t5_start','t5_compare'] # steering, lr_find and distributed take minutes
EXTRA = dict(streaming='/proc/self/smaps_rollup')
REAL = 'trec6','imdb_labels','imdb_frozen','rank_balance','t5_tasks','t5_adapt','t5_start','t5_compare' # measure on texts that are not bundled
number = lambda o: isinstance(o, (int,float)) and not isinstance(o, bool)

def faults(d, name, strict):
    "What is wrong with a result"
    bad = [f'{k} is {d.get(k)!r}' for k,t in (STRICT if strict else TOP).items() if not isinstance(d.get(k), t)]
    if bad: return bad
    if d['name']!=name or not d['command'].startswith(f'python benchmarks/{name}.py'): bad.append(f"named {d['name']}, made by {d['command']}")
    if not d['rows'] or 'torch' not in d['versions']: bad.append('no rows, or no version of torch')
    for r in d['rows']: bad += row_faults(r, strict)
    return bad

def row_faults(r, strict):
    bad = [f"{r.get('what')}: {k} is {r.get(k)!r}" for k,t in (NEEDS|MORE if strict else NEEDS).items() if not isinstance(r.get(k), t)]
    if not number(r.get('ours')): bad.append(f"{r.get('what')}: ours is {r.get('ours')!r}")
    if any(not (r.get(k) is None or number(r[k])) for k in ('peer','ratio')): bad.append(f"{r.get('what')}: peer or ratio is no number")
    if (r.get('peer') is None)!=(r.get('ratio') is None): bad.append(f"{r.get('what')}: a peer without a ratio, or a ratio without a peer")
    if strict and r.get('better') not in ('higher','lower'): bad.append(f"{r.get('what')}: better is {r.get('better')!r}")
    return bad

good = dict(name='x', command='python benchmarks/x.py', date='2026-01-01', machine='m', cores=1, threads=1, seconds=1, quick=True, versions={'torch':'2'},
    rows=[dict(what='w', ours=1., peer=2., peer_name='p', ratio=.5, unit='s', better='lower', note='')])

def test_the_format_and_its_faults():
    assert faults(good, 'x', True)==[]
    assert faults(good, 'y', True)!=[] and faults(good|dict(rows=[]), 'x', True)!=[] and faults(good|dict(cores='2'), 'x', True)!=[]
    for change in (dict(ours=None), dict(ratio=None), dict(better='bigger'), dict(unit=None), dict(peer='2'), dict(peer_name=None)):
        assert len(faults(good|dict(rows=[good['rows'][0]|change]), 'x', True))==1, change

@pytest.mark.parametrize('fn', sorted((bench/'results').glob('*.json')), ids=lambda o: o.stem)
def test_kept_results(fn):
    d = json.loads(fn.read_text(encoding='utf8'))
    assert faults(d, fn.stem, fn.stem in SCRIPTS)==[]
    assert not d.get('quick'), 'a trial was kept as a result'
    assert (bench/f'{fn.stem}.py').exists()

@pytest.mark.parametrize('name', SCRIPTS)
def test_quick_run(name, tmp_path):
    if not Path(EXTRA.get(name, '/')).exists(): pytest.skip(f'{name} needs {EXTRA[name]}')
    data = os.environ.get('ULMFIT_T5_DATA', '') if name in REAL else ''
    if name in REAL and not data: pytest.skip(f'{name} measures on real datasets: set ULMFIT_T5_DATA to their folder')
    kept = {o:o.read_bytes() for o in (bench/'results').glob('*')}
    out = run(sys.executable, bench/f'{name}.py', '--quick', '--threads', '1', '--out', tmp_path/f'{name}.json', ULMFIT_T5_DATA=data)
    d = json.loads((tmp_path/f'{name}.json').read_text(encoding='utf8'))
    assert faults(d, name, True)==[]
    assert d['quick'] and d['threads']==1 and str(tmp_path) not in json.dumps(d)
    assert all(r['what'] in out for r in d['rows'])
    same = {r['what']:r['ours'] for r in d['rows'] if r['what'].startswith('largest difference') and 'fp32' in r['what']+'fp32'*(name=='generation')}
    assert all(v<1e-4 for v in same.values()) and bool(same)==(name in ('inference','generation')) # the same answers as the peer, in float32
    assert {o:o.read_bytes() for o in (bench/'results').glob('*')}==kept # a trial leaves no results behind

def test_a_job_runs_alone_and_its_failure_is_shown(tmp_path):
    "What a full run does with each job; the second has no data to work on"
    cmd = [sys.executable,bench/'generation.py','--quick','--threads','1','--tmp',tmp_path,'--job','ours fp32']
    ask = lambda: subprocess.run([str(o) for o in cmd], env=os.environ, text=True, capture_output=True)
    r = ask()
    assert r.returncode and 'data.json' in r.stderr
    (tmp_path/'data.json').write_text(json.dumps(dict(texts=[], vocab=['xxunk','xxpad','xxbos','xxeos','xxfld','xxrep','xxwrep','xxup','xxmaj','the'])))
    d = json.loads(ask().stdout.split('RESULT ')[1])
    assert set(d)=={'3','6','probs'} and len(d['probs'])==10 and abs(sum(d['probs'])-1)<1e-4

def test_make_bench_runs_the_scripts_and_not_what_they_share():
    listed = set(run('make', '-n', 'bench').replace(';', ' ').split())
    assert 'benchmarks/common.py' not in listed and {f'benchmarks/{s}.py' for s in SCRIPTS}<=listed
