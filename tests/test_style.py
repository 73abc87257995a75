"House numbers and house rules, each as a function that lists its faults, and each shown to find one"
import ast,json
from pathlib import Path
import pytest
from conftest import bin,repo_files,root,run

FUNC,MODULE,OUTPUT,FILE,LSTM,BUNDLED = 50,330,300_000,16_000_000,30_000_000,60_000_000
PICKLERS = {'pickle','_pickle','cPickle','dill','cloudpickle','joblib','shelve','marshal'}
NAMES = {'load_pickle','save_pickle','read_pickle','to_pickle','load_learner','joblib_dump'}
NEWER = {'typing.Self','typing.Never','typing.LiteralString','typing.Unpack','typing.Required','typing.assert_never','typing.override','enum.StrEnum','datetime.UTC',
    'contextlib.chdir','hashlib.file_digest','itertools.batched','asyncio.TaskGroup','asyncio.timeout','math.cbrt','operator.call'}
GENERATED = ('docs/_src/','docs/_build/','docs/api/','_proc/','_docs/')
HAND_DOCS = {'docs/conf.py','docs/index.md'}

def package(): return sorted(o for o in (root/'ulmfit_t5').rglob('*.py') if o.name!='_modidx.py')
def sources(): return package() + [root/o for d in ('tests','tools','benchmarks','docs') for o in repo_files() if o.parts[0]==d and o.suffix=='.py']

def long_functions(src, fn):
    fs = [o for o in ast.walk(ast.parse(src)) if isinstance(o, (ast.FunctionDef,ast.AsyncFunctionDef))]
    return [f'{fn}:{o.lineno} {o.name} has {n} lines' for o in fs if (n:=o.end_lineno-o.lineno+1)>FUNC]

def _imported(o):
    if isinstance(o, ast.Import): return {a.name.split('.')[0] for a in o.names}
    return {(o.module or '').split('.')[0]} if isinstance(o, ast.ImportFrom) and not o.level else set()

def unsafe(src, fn):
    "Ways of running code that hides in data: pickle and kin, `torch.load` of more than weights, `allow_pickle`"
    bad = []
    for o in ast.walk(ast.parse(src)):
        kw = {k.arg:getattr(k.value,'value',None) for k in o.keywords} if isinstance(o, ast.Call) else {}
        if hit := _imported(o)&PICKLERS: bad.append((o, f"imports {', '.join(sorted(hit))}"))
        if isinstance(o, ast.ImportFrom) and any(a.name in NAMES for a in o.names): bad.append((o, 'imports a pickling function'))
        if isinstance(o, ast.ImportFrom) and o.module=='__future__': bad.append((o, 'imports from __future__'))
        if isinstance(o, ast.Call) and ast.unparse(o.func)=='torch.load' and kw.get('weights_only') is not True: bad.append((o, 'torch.load without weights_only=True'))
        if kw.get('allow_pickle'): bad.append((o, 'allow_pickle'))
        if isinstance(o, ast.Name|ast.Attribute) and getattr(o, 'attr', getattr(o, 'id', ''))in NAMES: bad.append((o, 'calls a pickling function'))
    return [f'{fn}:{o.lineno} {why}' for o,why in bad]

def too_new(src, fn):
    "Syntax and library names that came after Python 3.10"
    try: tree = ast.parse(src, feature_version=(3,10))
    except SyntaxError as e: return [f'{fn}:{e.lineno} {e.msg}']
    names = [(o.lineno,f'{o.module}.{a.name}') for o in ast.walk(tree) if isinstance(o, ast.ImportFrom) for a in o.names]
    names += [(o.lineno,ast.unparse(o)) for o in ast.walk(tree) if isinstance(o, ast.Attribute)]
    return [f'{fn}:{i} {n}' for i,n in names if n in NEWER]

def fat_outputs(nb, fn):
    "Outputs over the limit, and outputs that show where the checkout or the home folder of their maker was"
    bad = []
    for c in nb['cells']:
        for o in c.get('outputs', []):
            s = json.dumps(o)
            if len(s)>OUTPUT: bad.append(f"{fn} cell {c.get('id')}: an output of {len(s)//1000} kB")
            if f'{root}/' in s or f'{Path.home()}/' in s: bad.append(f"{fn} cell {c.get('id')}: an output names a folder of this machine")
    return bad

def test_chkstyle(): run(bin/'chkstyle', 'nbs', 'tests', 'tools', 'docs', 'benchmarks')

def test_ruff(): run(bin/'ruff', 'check', '.')

def test_functions_fit_a_glance(): assert [b for o in sources() for b in long_functions(o.read_text(), o.relative_to(root))]==[]

def test_modules_are_short():
    n = {str(o.relative_to(root)):len(o.read_text().splitlines()) for o in package()}
    assert {k:v for k,v in n.items() if v>MODULE}=={}

def test_nothing_is_pickled(): assert [b for o in package() for b in unsafe(o.read_text(), o.relative_to(root))]==[]

def test_python_310_will_do(): assert [b for o in sources() for b in too_new(o.read_text(), o.relative_to(root))]==[]

@pytest.mark.parametrize('src', ['try: f()\nexcept* E: pass', 'from typing import Self', 'hashlib.file_digest(f, "md5")', 'type X = int'])
def test_too_new_is_found(src): assert len(too_new(src, 'x.py'))==1

def test_outputs_are_small():
    nbs = [o for o in repo_files() if o.suffix=='.ipynb']
    assert [b for o in nbs for b in fat_outputs(json.loads((root/o).read_text(encoding='utf8')), o)]==[]

def fat_files(sizes):
    "Files and bundles over the limits, from {path: bytes}; whatever is bundled but the T5 models and the data counts towards the LSTM's share"
    bad = [f'{k} has {v/1e6:.1f} MB' for k,v in sizes.items() if v>FILE]
    mine = {k:v for k,v in sizes.items() if k.startswith('ulmfit_t5/bundled/')}
    lstm = sum(v for k,v in mine.items() if not k.split('/')[2].startswith(('t5','dbpedia')))
    if lstm>LSTM: bad.append(f'bundled, without T5: {lstm/1e6:.1f} MB')
    if sum(mine.values())>=BUNDLED: bad.append(f'bundled in all: {sum(mine.values())/1e6:.1f} MB')
    return bad

def test_files_are_small(): assert fat_files({o.as_posix():(root/o).stat().st_size for o in repo_files()})==[]

def generated(names): return [o for o in names if o.startswith(GENERATED) or (o.startswith('docs/') and o not in HAND_DOCS and '/_static/' not in o)]

def test_nothing_generated_is_tracked(): assert generated(o.as_posix() for o in repo_files())==[]

UNSAFE = ['import pickle', 'from joblib import dump', 'import dill as d', 'torch.load("x")', 'torch.load("x", weights_only=False)', 'np.load("x", allow_pickle=True)',
    'from fastcore.xtras import load_pickle', 'df.to_pickle("x")', 'learn = load_learner("x")', 'from __future__ import annotations']

@pytest.mark.parametrize('src', UNSAFE)
def test_unsafe_is_found(src): assert len(unsafe(src, 'x.py'))>=1

def test_safe_is_left_alone(): assert unsafe('import json,pickletools\ntorch.load("x", weights_only=True)\nfrom .core import *', 'x.py')==[]

def test_faults_of_size_are_found():
    assert long_functions('def f():\n'+' x = 1\n'*50, 'x.py')==['x.py:1 f has 51 lines']
    assert long_functions('def f():\n'+' x = 1\n'*49, 'x.py')==[]
    nb = lambda s: dict(cells=[dict(id='a', outputs=[dict(text=s)])])
    assert 'kB' in fat_outputs(nb('x'*OUTPUT), 'n')[0] and 'machine' in fat_outputs(nb(f'{root}/x'), 'n')[0] and fat_outputs(nb('ok'), 'n')==[]
    assert len(fat_files({'a':FILE+1}))==1
    parts = {f'ulmfit_t5/bundled/{d}/{i}':15_000_000 for d in ('awd','t5-small') for i in range(2)}
    assert fat_files(parts)==['bundled in all: 60.0 MB']
    assert fat_files({**parts, 'ulmfit_t5/bundled/tok/x':1})[0].startswith('bundled, without T5: 30.0')
    assert generated(['docs/_src/x.ipynb','docs/api/core.html','docs/conf.py','docs/_static/logo.svg'])==['docs/_src/x.ipynb','docs/api/core.html']
