"JupyterLab in headless Chromium: what is clicked there happens in the training, and the picture stays. Screenshots: build/browser"
import json,os,re,shutil,signal,socket,subprocess,sys,tempfile,time,urllib.request
from pathlib import Path
import nbformat,psutil,pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeout,expect,sync_playwright
from conftest import root

WAIT,shots = 200_000,root/'build'/'browser'
SLOW = 10 # times over what an idle machine needs: these waits are for a loaded one
FLAGS = ['--no-sandbox','--disable-gpu','--disable-dev-shm-usage','--disable-background-networking','--no-first-run','--disable-component-update','--disable-sync']

SMALL = """
import json,time,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from ulmfit_t5.train.groups import group_splitter

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed,self.body,self.head = nn.Embedding(20, 8),nn.Linear(8, 8),nn.Linear(8, 2)
    def forward(self, x):
        time.sleep(.03)
        return self.head(self.body(self.embed(x).mean(1)).relu())
    def groups(self): return [list(o.parameters()) for o in (self.embed,self.body,self.head)]

class Watch(Callback):
    "A line for each step: the rates it was taken with, and a sum over the weights of each group"
    order = 73
    def __init__(self, path): self.file = open(path, 'w', buffering=1)
    def after_step(self):
        sums = [sum(float(p.detach().double().abs().sum()) for p in g) for g in self.learn.model.groups()]
        print(json.dumps(dict(rates=[h['lr'] for h in self.opt.hypers], sums=sums)), file=self.file)

def small(path):
    torch.manual_seed(0)
    x = torch.randint(20, (240, 5))
    ds = list(zip(x, (x[:,0]>9).long()))
    dls = DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds[:80], bs=40))
    learn = Learner(dls, Small(), nn.CrossEntropyLoss(), splitter=group_splitter, lr=.01, metrics=accuracy, cbs=Watch(path))
    learn.logger = lambda *_: None
    return learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])
"""

def chromium():
    "The browser's path, installed from Debian's packages where there is none"
    names = 'chromium','chromium-browser','google-chrome'
    found = lambda: next((o for o in map(shutil.which, names) if o), None)
    if not found() and os.geteuid()==0 and shutil.which('apt-get'):
        for cmd in (['update'],['install','-y','--no-install-recommends','chromium']): subprocess.run(['apt-get','-qq',*cmd], check=False, stdout=subprocess.DEVNULL)
    if path := found(): return path
    pytest.fail("the browser tests need Chromium and there is none, nor could it be installed: apt-get install chromium (where the packages have none, as on Ubuntu: Google Chrome), and run them again")

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def end_tree(proc):
    "End a process and everything that it started"
    procs = [psutil.Process(proc.pid), *psutil.Process(proc.pid).children(recursive=True)]
    proc.send_signal(signal.SIGTERM)
    for o in psutil.wait_procs(procs, timeout=10)[1]: o.kill()
    proc.wait()

@pytest.fixture(scope='module')
def lab():
    "Folder and address of a JupyterLab on loopback, with settings of its own"
    with tempfile.TemporaryDirectory() as d:
        d,port = Path(d),free_port()
        (d/'small.py').write_text(SMALL)
        news = d/'settings'/'@jupyterlab'/'apputils-extension'
        news.mkdir(parents=True)
        (news/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
        own = {f'JUPYTER{k}_DIR':str(d/v) for k,v in (('_CONFIG','config'),('_RUNTIME','runtime'),('LAB_SETTINGS','settings'),('LAB_WORKSPACES','spaces'))}
        env = {**os.environ, **own, 'IPYTHONDIR':str(d/'ipython'), 'OMP_NUM_THREADS':'1', 'JUPYTER_PLATFORM_DIRS':'1', 'ULMFIT_T5_LESSON':'short'}
        args = ['--no-browser',f'--port={port}','--ip=127.0.0.1','--allow-root','--ServerApp.token=','--ServerApp.password=',f'--ServerApp.root_dir={d}','--ServerApp.disable_check_xsrf=True']
        with open(d/'server.log', 'w') as log: proc = subprocess.Popen([sys.executable,'-m','jupyterlab',*args], cwd=d, env=env, stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(f'http://127.0.0.1:{port}/api', proc), 60, 'JupyterLab did not start')
            yield d,f'http://127.0.0.1:{port}'
        finally: end_tree(proc)

def answers(url, proc):
    if proc.poll() is not None: pytest.fail(f'JupyterLab ended with {proc.returncode}')
    try: return urllib.request.urlopen(url, timeout=5).status==200
    except OSError: return False

def wait_for(f, secs, what):
    "Wait until `f()` is true; `what` is the sentence of the failure"
    end = time.monotonic()+secs*SLOW
    while not (res := f()):
        if time.monotonic()>end: pytest.fail(f'{what} within {secs*SLOW} s')
        time.sleep(.05)
    return res

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield b
        b.close()

def notebook(cells):
    "Sources of cells as a notebook"
    kernel = dict(name='python3', display_name='Python 3', language='python')
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells], metadata=dict(kernelspec=kernel))

class Book:
    "A notebook open in the browser; `cells` are sources, or a whole notebook"
    def __init__(self, lab, browser, name, cells, dark=False):
        self.dir,self.url,self.name = *lab,name
        nb = cells if hasattr(cells, 'cells') else notebook(cells)
        nbformat.write(nb, self.dir/f'{name}.ipynb')
        (self.dir/'settings'/'@jupyterlab'/'apputils-extension'/'themes.jupyterlab-settings').write_text(json.dumps(dict(theme='JupyterLab '+('Dark' if dark else 'Light'))))
        self.page = browser.new_page(viewport=dict(width=1300, height=1050), color_scheme='dark' if dark else 'light')
        self.page.set_default_timeout(WAIT)
        self.page.add_locator_handler(self.page.locator('.jp-Dialog .jp-mod-accept').last, self.accept, no_wait_after=True)
        self.open()
    def accept(self, button):
        "Jupyter may ask something, and again at once, or take the question back: take what it offers, and wait for nothing"
        try:
            print(f'{self.name}: Jupyter asked:', self.page.locator('.jp-Dialog').last.inner_text(timeout=2000))
            button.click(timeout=5000)
        except PlaywrightTimeout: pass
    def start_kernel(self):
        "One that the page finds under the notebook's path: a loaded machine knows of no kernels yet when the page opens, and asks for one"
        ask = dict(path=f'{self.name}.ipynb', name=self.name, type='notebook', kernel=dict(name='python3'))
        post = urllib.request.Request(f'{self.url}/api/sessions', json.dumps(ask).encode(), {'Content-Type':'application/json'})
        urllib.request.urlopen(post, timeout=WAIT/1000)
    def open(self):
        self.start_kernel()
        self.page.goto(f'{self.url}/lab/tree/{self.name}.ipynb?reset', timeout=WAIT)
        self.page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=WAIT)
        expect(self.page.locator('.jp-NotebookPanel-toolbar .jp-KernelName')).to_contain_text('Python 3', timeout=WAIT) # connected: what runs before asks for a kernel
        self.page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=WAIT)
    def run(self, i):
        "Run cell `i` and do not wait for its end; again where the kernel was not ready yet and Jupyter dropped it"
        cell = self.page.locator('.jp-Notebook .jp-Cell').nth(i)
        for _ in range(30):
            cell.locator('.cm-content').click()
            self.page.keyboard.press('Shift+Enter')
            try: return expect(cell.locator('.jp-InputPrompt')).to_have_text(re.compile(r'\[[*\d]+\]'), timeout=3000)
            except AssertionError: continue
        pytest.fail(f'cell {i} of {self.name} did not run')
    def run_all(self):
        "By the menu, as a reader would; again where the kernel was not ready yet"
        for _ in range(30):
            self.page.keyboard.press('Escape')
            self.page.locator('.lm-MenuBar-item:has-text("Run")').click()
            self.page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
            try: return expect(self.page.locator('.jp-InputPrompt', has_text=re.compile(r'\[[*\d]+\]')).first).to_be_attached(timeout=3000)
            except AssertionError: continue
        pytest.fail(f'the cells of {self.name} did not run')
    def out(self, i): return self.page.locator('.jp-Notebook .jp-Cell').nth(i).locator('.jp-Cell-outputArea')
    def button(self, text, nth=0): return self.page.locator(f'button.jupyter-button:has-text("{text}")').nth(nth)
    def sees(self, text): expect(self.page.locator('.jp-Notebook')).to_contain_text(text, timeout=WAIT)
    def shot(self, name):
        shots.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=shots/f'{name}.png')
    def save(self):
        self.page.keyboard.press('Escape')
        self.page.keyboard.press('Control+s')
        wait_for(lambda: 'execution_count": 1' in (self.dir/f'{self.name}.ipynb').read_text(), 20, 'the notebook was not saved')
    def lines(self): # what `Watch` wrote, whole lines only
        return [json.loads(o) for o in (self.dir/f'{self.name}.jsonl').read_text().split('\n')[:-1]]
    def steps(self): return len(self.lines()) if (self.dir/f'{self.name}.jsonl').exists() else 0
    def end_kernels(self):
        for k in json.loads(urllib.request.urlopen(f'{self.url}/api/kernels').read()):
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/kernels/{k['id']}", method='DELETE'))

@pytest.fixture(scope='module')
def cockpit(lab, browser):
    "A training under way, with its cockpit above it"
    b = Book(lab, browser, 'cockpit', ["from small import *\nfrom ulmfit_t5.widgets.cockpit import *\nlearn = small('cockpit.jsonl')\nlearn.cockpit()",
        "print('before')\nawait learn.steer('fit', 2000)\nprint('after', learn.steering.steps_done)"])
    b.run(0)
    b.button('Pause').wait_for(timeout=WAIT)
    b.shot('cockpit_1_waiting')
    b.run(1)
    wait_for(lambda: b.steps()>40, 60, 'the training made no steps')
    return b

def test_freeze_by_a_click(cockpit):
    b = cockpit
    expect(b.page.locator('text=0 embed:')).to_contain_text('open, rate 0.01')
    b.button('Freeze', 2).click()
    wait_for(lambda: b.lines()[-1]['rates'][0]==0, 10, 'the rate of the group did not go to zero')
    expect(b.page.locator('text=0 embed:')).to_contain_text('frozen, rate 0', timeout=WAIT)
    b.shot('cockpit_2_frozen')
    n = b.steps()
    wait_for(lambda: b.steps()>n+20, 20, 'the training did not go on')
    rows = b.lines()
    first = next(i for i,o in enumerate(rows) if o['rates'][0]==0)
    assert all(o['rates'][0]==0 for o in rows[first:])
    assert len({o['sums'][0] for o in rows[first-1:]})==1, 'the weights of the frozen group moved'
    assert len({o['sums'][0] for o in rows[:first]})==first and len({o['sums'][1] for o in rows})==len(rows)

def test_set_a_rate_with_the_keyboard(cockpit):
    b = cockpit
    b.button('Freeze', 0).focus()
    for _ in range(3): b.page.keyboard.press('Tab')
    b.page.keyboard.type('3e-4')
    b.page.keyboard.press('Enter')
    wait_for(lambda: b.lines()[-1]['rates'][2]==3e-4, 10, 'the rate was not set')
    b.page.keyboard.press('Tab')
    b.page.keyboard.press('Space')
    wait_for(lambda: b.lines()[-1]['rates'][2]==.01, 10, 'the rate was not released')

def test_pause_one_step_resume(cockpit):
    b = cockpit
    b.button('Pause').click()
    b.sees('paused')
    n = b.steps()
    time.sleep(.5)
    assert b.steps()==n, 'steps were taken in the pause'
    b.button('Save now').click()
    b.button('One step').click()
    wait_for(lambda: b.steps()==n+1, 10, 'one step was not taken')
    time.sleep(.3)
    b.shot('cockpit_3_paused')
    assert b.steps()==n+1
    b.button('Resume').click()
    wait_for(lambda: b.steps()>n+10, 20, 'the training did not go on')
    b.button('Roll back').click()
    b.sees('rollback name step')

def test_stop_leaves_picture_and_prints(cockpit):
    b = cockpit
    b.button('Stop after this epoch').click()
    expect(b.out(1)).to_contain_text('after', timeout=WAIT)
    expect(b.out(1)).to_contain_text('before')
    expect(b.page.locator('button.jupyter-button')).to_have_count(0, timeout=WAIT)
    expect(b.out(0)).to_contain_text('Commands: step')
    assert b.out(0).locator('img').count()>=2
    b.out(0).scroll_into_view_if_needed()
    b.shot('cockpit_4_picture')

def test_picture_without_a_kernel(cockpit):
    b = cockpit
    b.save()
    b.end_kernels()
    b.open()
    expect(b.out(0)).to_contain_text('Training cockpit')
    expect(b.out(0)).not_to_contain_text('not found')
    img = b.out(0).locator('img').first
    assert img.evaluate('o => o.complete && o.naturalWidth>0'), 'the chart of the picture cannot be shown'
    img.scroll_into_view_if_needed()
    b.shot('cockpit_5_reopened')

TEXTS = """area => [...area.querySelectorAll('.u5, .u5 div, .u5 td, .u5 th, .u5 b, .u5 span, button:enabled')].filter(o => o.checkVisibility() && o.innerText.trim()).map(o => {
    let b = o; while (b.parentElement && /, 0\\)$|transparent/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;
    return [o.innerText, getComputedStyle(o).color, getComputedStyle(b).backgroundColor] })"""

def contrast(*colours):
    "Of a text with what lies behind it, as WCAG counts it: 1 to 21"
    def light(c):
        rgb = [int(v)/255 for v in re.findall(r'\d+', c)[:3]]
        return sum(k*(v/12.92 if v<=.03928 else ((v+.055)/1.055)**2.4) for k,v in zip((.2126,.7152,.0722), rgb))
    a,b = sorted(map(light, colours))
    return (b+.05)/(a+.05)

def readable(b, i):
    "All texts of a cell's output, taken at one moment, stand out from the dark page"
    area = b.out(i)
    area.locator('.u5').first.wait_for(timeout=WAIT)
    assert area.evaluate('o => getComputedStyle(document.querySelector(".jp-Notebook")).backgroundColor')=='rgb(17, 17, 17)', 'the theme is not dark'
    texts = area.evaluate(TEXTS)
    assert len(texts)>5 and not [o for o in texts if contrast(*o[1:])<4]

def test_interrupt_stops_at_a_batch_with_whole_weights(lab, browser):
    "Under the dark theme, in which panels and the pictures that stay are read as well"
    b = Book(lab, browser, 'plain', ["from small import *\nfrom ulmfit_t5.widgets.cockpit import *\nlearn = small('plain.jsonl')\nlearn.cockpit()\nawait learn.steer('fit', 2000)",
        "print('alive', learn.steering.running, all(p.isfinite().all() for p in learn.model.parameters()))",
        "with learn.no_bar(), learn.no_logging(): learn.fit(2)\nprint('plain done')",
        "from ulmfit_t5.widgets.board import LayerBoard\nfrom ulmfit_t5.widgets.bench import ScheduleBench\nfrom ulmfit_t5.widgets.page import Picture\n"
        "Picture(LayerBoard(learn).picture().html()+ScheduleBench(learn).picture().html())"], dark=True)
    b.run(0)
    wait_for(lambda: b.steps()>20, 90, 'the training made no steps')
    readable(b, 0)
    b.shot('plain_1_dark')
    b.page.keyboard.press('Escape')
    for _ in 'ii': b.page.keyboard.press('i')
    expect(b.out(0)).to_contain_text('CancelledError', timeout=WAIT)
    b.run(1)
    b.sees('alive False True')
    b.run(2)
    b.sees('plain done')
    b.run(3)
    readable(b, 3)
    b.shot('plain_2_picture')
    b.page.locator('.jp-Notebook .jp-Cell').nth(0).scroll_into_view_if_needed()
    readable(b, 0)
    expect(b.out(0).locator('button.jupyter-button')).to_have_count(0, timeout=WAIT)
    b.shot('plain_3_dark_picture')

def pictures(out): return out.locator('svg,img').evaluate_all('os => os.map(o => o.outerHTML).join()')

def test_drag_a_slider_of_the_schedule_bench(lab, browser):
    "The picture changes, and the one line of code that makes it"
    b = Book(lab, browser, 'bench', ["from small import *\nfrom ulmfit_t5.widgets.bench import *\nbench = ScheduleBench(small('bench.jsonl'))\nbench", "print(bench.code)"])
    b.run(0)
    out = b.out(0)
    handle = out.locator('.widget-slider:has(.widget-label:has-text("factor")) .noUi-handle')
    handle.wait_for(timeout=WAIT)
    b.shot('bench_1_before')
    old,box = pictures(out),handle.bounding_box()
    assert old, 'there is no picture'
    assert 'factor=2.6' in out.inner_text() and 'ratio=32.0' in out.inner_text(), 'the browser changed a value that nobody touched'
    x,y = box['x']+box['width']/2,box['y']+box['height']/2
    b.page.mouse.move(x, y)
    b.page.mouse.down()
    for i in range(8): b.page.mouse.move(x+5*i, y)
    b.page.mouse.up()
    wait_for(lambda: re.search(r'factor=(?!2\.6\D)', out.inner_text()), 20, 'the code did not change')
    wait_for(lambda: pictures(out)!=old, 20, 'the picture did not change')
    b.run(1)
    expect(b.out(1)).to_contain_text(re.compile(r'factor=(?!2\.6\D)[\d.]+'), timeout=WAIT)
    assert re.search(r'factor=([\d.]+)', b.out(1).inner_text())[0] in out.inner_text()
    b.shot('bench_2_dragged')
