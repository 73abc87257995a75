"Imports go down only: the contracts in pyproject.toml, kept by import-linter"
import shutil,pytest
from conftest import bin,root,run

def lint(d): return run(bin/'lint-imports', '--no-cache', cwd=d, PYTHONPATH=str(d))

def test_layers():
    "Every contract is kept, every layer exists, and every module of the package stands in one"
    lint(root)

FAULTS = [('core.py', 'import ulmfit_t5.widgets.page', 'ulmfit_t5.core is not allowed to import ulmfit_t5.widgets'),
    ('train/groups.py', 'import ulmfit_t5.models.heads', 'ulmfit_t5.train is not allowed to import ulmfit_t5.models'),
    ('models/layers.py', 'import ulmfit_t5.data.tokenizer', 'ulmfit_t5.models is not allowed to import ulmfit_t5.data'),
    ('models/awd_lstm.py', 'import ulmfit_t5.models.heads', 'ulmfit_t5.models.awd_lstm is not allowed to import ulmfit_t5.models.heads'),
    ('data/stray.py', 'x = 1', 'stray'), ('stray.py', 'x = 1', 'stray')]

@pytest.mark.parametrize('fn,line,named', FAULTS, ids=[o[0] for o in FAULTS])
def test_a_wrong_import_is_found(fn, line, named, tmp_path):
    "An upward import, one across, and a module that no layer names are each refused, by name"
    shutil.copytree(root/'ulmfit_t5', tmp_path/'ulmfit_t5', ignore=shutil.ignore_patterns('bundled','__pycache__'))
    shutil.copy(root/'pyproject.toml', tmp_path)
    p = tmp_path/'ulmfit_t5'/fn
    p.write_text((p.read_text() if p.exists() else '')+f'\n{line}\n')
    with pytest.raises(AssertionError, match=named): lint(tmp_path)
