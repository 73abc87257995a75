"Flags, folders and helpers that all tests share"
import os,shutil,signal,subprocess,sys,tempfile
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent
sys.path.insert(0, str(root/'tools'))

def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run what takes minutes')
    parser.addoption('--gpu', action='store_true', help='also run what needs a CUDA device')

def pytest_configure(config):
    "Nothing that a test makes lands in the user's cache, and nothing is found there"
    config._ulmfit_cache = tempfile.mkdtemp(prefix='ulmfit_t5_tests_')
    os.environ['ULMFIT_T5_CACHE'] = config._ulmfit_cache
    os.environ.setdefault('ULMFIT_T5_LESSON', 'short')
    if signal.getsignal(signal.SIGINT)==signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job ignores it, and so would all it starts
    if n:=int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)): os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//n))) # cores are shared

ALONE = 'test_notebooks.py','test_tutorials.py','test_benchmarks.py' # tests that start a process of their own, in any order

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "A file to a process, so that its fixtures are made once; files of `ALONE` test by test; all that drive a browser together"
    from xdist.scheduler import LoadScopeScheduling
    class Spread(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = nodeid.split('::')[0].rsplit('/', 1)[-1]
            return 'browser' if name.startswith('test_browser') else nodeid if name in ALONE else name
    return Spread(config, log)

def pytest_unconfigure(config): shutil.rmtree(config._ulmfit_cache, ignore_errors=True)

def pytest_collection_modifyitems(config, items):
    for flag in ('slow','gpu'):
        if config.getoption(f'--{flag}'): continue
        for o in items:
            if flag in o.keywords: o.add_marker(pytest.mark.skip(reason=f'opt in with --{flag}'))

@pytest.fixture(scope='session')
def data_home():
    "Folder of real datasets; where there is none, the test is skipped and says so"
    d = os.environ.get('ULMFIT_T5_DATA')
    if not d: pytest.skip('needs real datasets: set ULMFIT_T5_DATA to their folder')
    if not Path(d).is_dir(): pytest.skip(f'ULMFIT_T5_DATA names {d}, which is not a folder')
    return Path(d)

def run(*cmd, cwd=root, timeout=600, **env):
    "Run a command; its output is the message where it fails"
    __tracebackhide__ = True
    r = subprocess.run([str(o) for o in cmd], cwd=cwd, timeout=timeout, env={**os.environ, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if r.returncode: raise AssertionError(f"{' '.join(str(o) for o in cmd)} ended with {r.returncode}:\n{r.stdout[-8000:]}")
    return r.stdout

def repo_files(d=root):
    "Files of the checkout that git tracks or would track, as paths relative to `d`"
    if not (d/'.git').exists(): pytest.skip(f'{d} is not a git checkout')
    out = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=d)
    return sorted(Path(o) for o in set(out.split('\0')) if o and (d/o).is_file())
