"settings.ini mirrors pyproject.toml, and warnings from our own modules are errors here"
import shutil,sys,warnings
from configparser import ConfigParser
import pytest
from conftest import root,run
from settings_ini import settings

tool = root/'tools'/'settings_ini.py'

def test_settings_ini_is_fresh(): run(sys.executable, tool, root, '--check')

def test_settings_ini_states_the_truth():
    import ulmfit_t5
    c = ConfigParser()
    c.read(root/'settings.ini')
    d = dict(c['DEFAULT'])
    assert d['version']==ulmfit_t5.__version__
    assert d['lib_name']==d['lib_path']=='ulmfit_t5'
    assert d=={k:str(v) for k,v in settings(root).items()}

@pytest.mark.parametrize('fn,old,new', [('pyproject.toml','requires-python = ">=3.10"','requires-python = ">=3.11"'),
    ('ulmfit_t5/__init__.py','__version__ = "','__version__ = "9'), ('settings.ini','branch = main','branch = other')])
def test_a_stale_settings_ini_is_found(fn, old, new, tmp_path):
    (tmp_path/'ulmfit_t5').mkdir()
    for o in ('pyproject.toml','settings.ini','ulmfit_t5/__init__.py'): shutil.copy(root/o, tmp_path/o)
    run(sys.executable, tool, tmp_path, '--check')
    txt = (tmp_path/fn).read_text()
    assert old in txt
    (tmp_path/fn).write_text(txt.replace(old, new))
    with pytest.raises(AssertionError, match='settings.ini is stale'): run(sys.executable, tool, tmp_path, '--check')

def test_our_warnings_are_errors():
    with pytest.raises(UserWarning): warnings.warn_explicit('ours', UserWarning, 'core.py', 1, module='ulmfit_t5.core')

@pytest.mark.filterwarnings('ignore:theirs')
def test_other_warnings_are_not(): warnings.warn_explicit('theirs', UserWarning, 'x.py', 1, module='somebody.else')
