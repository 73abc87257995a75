"A wheel from a clean clone holds everything, and works where it is installed"
import json,shutil,sys,zipfile
import pytest
from conftest import repo_files,root,run

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a clone of HEAD; from a copy of what git sees where the checkout has changes"
    d = tmp_path_factory.mktemp('wheel')
    files,src = repo_files(),d/'src'
    if not run('git', 'status', '--porcelain').strip(): run('git', 'clone', '-q', root, src)
    else:
        for o in files:
            (src/o.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(root/o, src/o)
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '-o', d/'dist', src)
    return next((d/'dist').glob('*.whl'))

def test_wheel_is_whole(wheel):
    "Every module, py.typed and every bundled file that git sees"
    want = {o.as_posix() for o in repo_files() if o.parts[0]=='ulmfit_t5'}
    assert 'ulmfit_t5/py.typed' in want
    have = set(zipfile.ZipFile(wheel).namelist())
    assert want-have==set()
    assert {o.split('/')[0] for o in have}=={'ulmfit_t5', f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert any(o.endswith('licenses/LICENSE') for o in have)

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    d = tmp_path_factory.mktemp('site')
    run(sys.executable, '-m', 'pip', 'install', '-qq', '--no-deps', '--no-index', '--target', d, wheel)
    return d

IMPORT = """
import pathlib,ulmfit_t5,ulmfit_t5.all
print(pathlib.Path(ulmfit_t5.__file__).parent.parent, ulmfit_t5.__version__)
"""

def test_wheel_imports(installed, tmp_path):
    "`ulmfit_t5.all` imports in a new process, from the wheel and from another folder"
    out = run(sys.executable, '-c', IMPORT, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert out[-2]==str(installed), f'imported from {out[-2]}, not from the wheel'

PREDICT = """
import json,math,sys,torch
from ulmfit_t5.all import *
tok = bundled_tokenizer()
ids = tok.encode('The city is the capital of the province and lies on the river.')
def bits(lm, ids):
    x = torch.tensor([ids])
    lm.reset()
    with torch.no_grad(): logits = lm.logits(lm(x[:,:-1]))
    return torch.nn.functional.cross_entropy(logits[0].float(), x[0,1:]).item()
for name in sys.argv[1:]:
    art = load_artefact(bundled(name), 'language_model')
    cfg = {k:v for k,v in art.config['model'].items() if k!='vocab_sz'}
    lm = load_tensors(language_model(len(tok), cfg), art.tensors).eval()
    seq = ids[::-1] if art.config.get('backwards') else ids
    mixed = [seq[i] for i in torch.randperm(len(seq), generator=torch.Generator().manual_seed(0))]
    print(name, bits(lm, seq), bits(lm, mixed), math.log(len(tok)))
    assert bits(lm, seq)<min(bits(lm, mixed), math.log(len(tok)))
"""

def test_wheel_predicts(installed, tmp_path):
    "Each bundled language model, read from the wheel, finds a sentence likelier than its words in disorder"
    names,here = (sorted(o.parent.name for o in (d/'ulmfit_t5'/'bundled').glob('*/config.json') if json.loads(o.read_text())['kind']=='language_model')
        for d in (installed,root))
    assert names==here and len(names)>1
    run(sys.executable, '-c', PREDICT, *names, cwd=tmp_path, PYTHONPATH=str(installed))
