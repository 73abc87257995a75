"Every tutorial runs in a process of its own: shortened here, whole under `make lessons`; the committed one shows its outputs"
import json,os,sys,pytest
from conftest import root,run

lessons = sorted((root/'nbs'/'tutorials').glob('[0-9]*.ipynb'))
whole = os.environ.get('ULMFIT_T5_LESSON')=='full'
name = lambda p: p.stem

def test_there_are_lessons(): assert lessons, 'nbs/tutorials holds no notebook'

@pytest.mark.parametrize('nb', lessons, ids=name)
def test_lesson_runs(nb):
    "At most 2 minutes shortened, at most 10 whole"
    run(sys.executable, root/'tools'/'run_nb.py', nb, timeout=600 if whole else 120)

def lesson_faults(nb):
    "What a committed lesson lacks"
    code = [c for c in nb['cells'] if c['cell_type']=='code']
    outs = [o for c in code for o in c['outputs']]
    faults = []
    if not any('ULMFIT_T5_LESSON' in ''.join(c['source']) for c in code): faults.append('no cell reads ULMFIT_T5_LESSON, so nothing shortens it')
    if 'kernelspec' not in nb['metadata']: faults.append('it names no kernel, so Jupyter asks the reader for one')
    if not outs: faults.append('it has no outputs: run it with nbdev-test --save')
    if any(o['output_type']=='error' for o in outs): faults.append('it keeps an error as output')
    if not any('image/png' in o.get('data',{}) or 'image/svg+xml' in o.get('data',{}) for o in outs): faults.append('it shows no picture')
    return faults

@pytest.mark.parametrize('nb', lessons, ids=name)
def test_lesson_keeps_its_outputs(nb): assert lesson_faults(json.loads(nb.read_text(encoding='utf8')))==[]

def test_lesson_faults_are_seen():
    "An empty lesson has four faults, and one that keeps an error says so"
    cell = dict(cell_type='code', source=['1/0'], outputs=[])
    assert len(lesson_faults(dict(cells=[cell], metadata={})))==4
    cell['outputs'] = [dict(output_type='error')]
    assert 'it keeps an error as output' in lesson_faults(dict(cells=[cell], metadata={}))
