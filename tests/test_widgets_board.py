"The layer board without a browser: what its controls say and do, in a synchronous fit and in an awaited one; charts that any input leaves well-formed"
import asyncio,math,re,shutil,subprocess,threading
from html.parser import HTMLParser
from xml.etree import ElementTree
import pytest,torch
from hypothesis import given,settings,strategies as st
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from ulmfit_t5.core import seed_everything
from ulmfit_t5.train.events import RunLog,read_log
from ulmfit_t5.train.steered import *
from ulmfit_t5.train.unfreeze import UnfreezeSchedule
from ulmfit_t5.widgets.board import *
from ulmfit_t5.widgets.paint import *

def make(seed=0, n=48, **kw):
    seed_everything(seed)
    x = torch.randint(0, 9, (n, 6))
    dl = DataLoader(list(zip(x, x.float().mean(1, keepdim=True))), bs=8, device='cpu')
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 1))
    split = lambda m: [list(o.parameters()) for o in (m[0],m[2],m[4])]
    learn = Learner(DataLoaders(dl, dl), model, nn.MSELoss(), splitter=split, **kw)
    learn.logger = lambda *_: None
    return learn

def group(board, g): return next(l for l in board.view.lines if l['g']==g)
def shown(board): return [re.findall(r'</span> (open|frozen)</span>', r)[0] for r in board.view.table.value.split('<tr>')[2:]] # top first
def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

class At(Callback):
    "Calls a function before a batch, after the commands of that batch were applied"
    order = 90
    def __init__(self, acts): self.acts,self.n = acts,-1
    def before_batch(self):
        if not self.training: return
        self.n += 1
        if self.n in self.acts: self.acts[self.n](self.learn)

def test_a_click_freezes_before_the_next_batch():
    "From another thread, in the middle of a fit: that group stops at once, the others go on, and the board says so"
    learn = make(n=160)
    board = LayerBoard(learn, every=1)
    board.widget()
    seen = {}
    def click(learn):
        t = threading.Thread(target=group(board, 1)['on'].click)
        t.start()
        t.join()
    keep = lambda k: lambda learn: seen.setdefault(k, (weights(learn), [h['lr'] for h in learn.opt.hypers]))
    learn.fit(1, .01, cbs=At({5:click, 7:keep('a'), 12:keep('b')}))
    (wa,la),(wb,lb) = seen['a'],seen['b']
    assert torch.equal(wa[1], wb[1]) and torch.equal(wa[2], wb[2]) and not torch.equal(wa[0], wb[0]) and not torch.equal(wa[3], wb[3])
    assert la[1]==0 and lb[0]==.01 and shown(board)==['open','frozen','open'] and group(board, 1)['on'].description=='frozen'
    assert [(o['command'],o['step']) for o in board.steer.log]==[('freeze',6)] and board.trace.series(('group',1), 'rate')[5:8]==[.01,0.,0.]

def test_awaited_training_hears_the_board():
    "In `await learn.steer(...)` the controls act from the event loop, drawing comes back to it, and the log has both commands"
    learn = make(n=1600)
    async def main():
        board = LayerBoard(learn, every_s=.01)
        board.widget()
        home,drawn = threading.current_thread(),set()
        draw = board.view.draw
        board.view.draw = lambda: (drawn.add(threading.current_thread()), draw())
        run = learn.steer('fit', 3, .01)
        while learn.steering.steps_done<20: await asyncio.sleep(.005)
        group(board, 0)['on'].click()
        group(board, 2)['rate'].value = '0.002'
        await run
        await asyncio.sleep(.05)
        return board,drawn=={home}
    board,at_home = asyncio.run(main())
    assert at_home and board.failed is None
    assert [o['command'] for o in board.steer.log]==['freeze','set_rate'] and 20<=board.steer.log[0]['step']<600
    assert board.trace.series(('group',2), 'rate')[-1]==.002 and shown(board)==['open','open','frozen']

def test_controls_say_what_they_do():
    "Every control has words for the mouse and for a screen reader, and all are reached with the keyboard"
    board = LayerBoard(make())
    board.widget()
    names = {k:[l[k].tooltip for l in board.view.lines] for k in ('on','rate','back','more')}
    assert all('group' in t and t for ts in names.values() for t in ts) and len({t for ts in names.values() for t in ts})==12
    assert [type(board.view.lines[0][k]).__name__ for k in ('on','rate','back','more')]==['Button','Text','Button','ToggleButton']
    assert 'role="status"' in board.view.said.value

def test_schedule_moves_the_switches():
    "Gradual unfreezing shows in the buttons without a command, and a held group stays held through the stages"
    learn = make()
    board = LayerBoard(learn, every=1)
    board.widget()
    seen = []
    look = lambda learn: (board.refresh(force=True), seen.append([group(board, g)['on'].description=='open' for g in range(3)]))
    board.freeze(1)
    learn.fit_unfreeze(UnfreezeSchedule.gradual(3, 1, 1, lr=.01), cbs=At({2:look, 8:look, 14:look}))
    assert seen==[[False,False,True],[False,False,True],[True,False,True]] and [o['command'] for o in board.steer.log]==['freeze']

def test_wrong_entries_are_told():
    board = LayerBoard(make())
    board.widget()
    for text,why in (('quick','give a number such as'),('-1','give a number above 0'),('nan','give a number above 0'),('inf','give a number above 0')):
        group(board, 2)['rate'].value = text
        said = board.view.said.value
        assert why in said, said
    assert board.steer.lrs=={}
    group(board, 2)['rate'].value = ' 1e-3 '
    assert board.steer.lrs=={2:1e-3} and 'applied before step 0' in board.view.said.value
    group(board, 2)['rate'].value = ''
    assert board.steer.lrs=={}
    with pytest.raises(IndexError, match='no group 3: the model has 3'): board.open(3)

def test_an_emptied_rate_leaves_the_freeze():
    board = LayerBoard(make())
    board.widget()
    group(board, 0)['on'].click()
    group(board, 0)['rate'].value = '.1'
    group(board, 0)['rate'].value = ''
    assert board.steer.opens=={0:False} and board.steer.lrs=={}

def test_the_board_changes_nothing_by_watching():
    a,b = make(),make()
    board = LayerBoard(a, every=1)
    board.widget()
    for l in (a,b): l.fit(2, .02)
    assert all(map(torch.equal, weights(a), weights(b))) and board.failed is None and len(board.trace.steps)==12

def test_a_drawing_that_fails_stops_nothing():
    learn = make()
    board = LayerBoard(learn, every=1)
    board.widget()
    def broken(): raise RuntimeError('no ink')
    board.view.draw = broken
    learn.fit(1, .01)
    assert str(board.failed)=='no ink' and len(learn.recorder.values)==1

def test_a_new_board_takes_the_place_of_the_old():
    learn = make()
    LayerBoard(learn)
    board = LayerBoard(learn, every=1)
    learn.fit(1, .01)
    assert sum(type(cb).__name__=='BoardWatch' for cb in learn.cbs)==1 and sum(type(cb).__name__=='LayerStats' for cb in learn.cbs)==1
    assert len(board.picture().html())>1000

def test_board_and_log_share_samples(tmp_path):
    learn = make()
    board = LayerBoard(learn, every=2)
    learn.fit(2, .01, cbs=RunLog(tmp_path/'a.jsonl'))
    run = read_log(tmp_path/'a.jsonl')
    assert [s.step for s in run.samples]==board.trace.steps
    a,b = run.rows('drift', group=1)[1],board.trace.series(('group',1), 'drift')
    assert all(math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-9) for x,y in zip(a, b))
    assert hasattr(learn, 'layer_stats') # the log leaves what it did not bring

def far(learn, start, g):
    "Distance of a group from where it began, over the norm of that"
    name = {id(p):n for n,p in learn.model.named_parameters()}
    ps = [(p.detach(),start[name[id(p)]]) for p in learn.model.groups()[g]]
    return math.sqrt(sum(float((a-b).square().sum()) for a,b in ps)/sum(float(b.square().sum()) for _,b in ps))

@pytest.fixture(scope='module')
def adapted(tmp_path_factory):
    "A learner of a classifier from a folder, a function that makes it"
    import pandas as pd
    from ulmfit_t5.data.loaders import TextDataLoaders
    from ulmfit_t5.learner import language_model_learner,text_classifier_learner
    from ulmfit_t5.models.awd_lstm import COMPACT_LM
    seed_everything(0)
    df,folder = pd.DataFrame([dict(text=f'the {k} number {i} is here', label=k) for i in range(16) for k in ('river','song')]),tmp_path_factory.mktemp('lm')/'lm'
    loaders = lambda **kw: TextDataLoaders.from_df(df, valid_pct=.25, bs=8, progress=False, **kw)
    language_model_learner(loaders(is_lm=True, seq_len=8), None, dict(COMPACT_LM, emb_sz=16, n_hid=24)).save(folder)
    def make(): return text_classifier_learner(loaders(), folder, verbose=False)
    return make,folder

def silent(learn, *args):
    with learn.no_bar(),learn.no_logging(): learn.fit(*args)

def test_drift_and_reset_are_from_the_pretrained_weights(adapted):
    "A fit before the board was made counts, and a reset undoes it too; no copy of what the folder holds is kept"
    learn = adapted[0]()
    start = {n:p.detach().clone() for n,p in learn.model.named_parameters()}
    silent(learn, 1, 5e-3)
    before = far(learn, start, 3)
    board = LayerBoard(learn, every=1)
    board.widget()
    silent(learn, 1, 5e-3)
    for g in (0,3,len(learn.model.groups())-1):
        assert board.update().trace.series(('group',g), 'drift')[-1]==pytest.approx(far(learn, start, g), rel=1e-3)
    assert before>0 and board.steer.origin is None and 'distance from the pretrained weights' in board.html() and 'the pretrained weights' in group(board, 3)['back'].tooltip
    for g in (3,len(learn.model.groups())-1):
        board.reset(g)
        assert far(learn, start, g)==0

def test_a_reset_needs_no_fit_here(adapted):
    "As after a training in other processes, which no callback of this one saw"
    learn = adapted[0]()
    start = {n:p.detach().clone() for n,p in learn.model.named_parameters()}
    with torch.no_grad():
        for p in learn.model.parameters(): p.add_(1)
    LayerBoard(learn).reset(2)
    assert far(learn, start, 2)==0 and far(learn, start, 1)>0

def test_what_is_not_pretrained_is_not_called_so(adapted):
    "A learner that does not know its folder, or whose folder has changed, says from when it measures"
    learn = make()
    board = LayerBoard(learn, every=1)
    board.widget()
    start = weights(learn)
    learn.fit(1, .01)
    assert 'distance from the weights as they were when the board was made' in board.html() and 'pretrained' not in board.html()
    assert 'when the board was made' in group(board, 0)['back'].tooltip
    board.reset(0)
    assert torch.equal(weights(learn)[0], start[0])
    clas,folder = adapted[0](),adapted[1]
    (folder/'config.json').write_text((folder/'config.json').read_text()+' ')
    board = LayerBoard(clas)
    assert board.stats.since==board.steer.began=='the weights as they were when the board was made'
    board.reset(2)

def test_what_is_wrong_with_a_command_is_raised_in_a_script():
    board = LayerBoard(make())
    for f in (board.freeze,board.thaw,board.reset,board.release):
        with pytest.raises(IndexError, match='no group 9: the model has 3'): f(9)
    with pytest.raises(IndexError, match="no group 'a': the model has 3"): board.open('a')
    with pytest.raises(ValueError, match='give a number above 0'): board.set_rate(0, -1)
    assert board.steer.log==[] and 'no group' not in board.message()

def test_the_board_is_as_narrow_as_a_page(tmp_path):
    "Rendered at 700 pixels, as on paper, with the layers of all groups open: nothing is cut off"
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if not chromium: pytest.skip('chromium is not installed: apt-get install chromium')
    learn = make()
    board = LayerBoard(learn, every=1)
    learn.fit(2, .01)
    for g in range(3): board.open(g)
    page = board.save(tmp_path/'board.html')
    page.write_text(page.read_text().replace('</body>', "<script>document.querySelector('details').open=true;document.title=[...document.querySelectorAll('.u5-scroll')].map(o=>o.scrollWidth-o.clientWidth).join()</script></body>"))
    out = subprocess.run([chromium,'--headless','--no-sandbox','--disable-gpu','--window-size=700,900',f'--user-data-dir={tmp_path}/profile','--dump-dom',page.as_uri()],
        capture_output=True, text=True, timeout=120).stdout
    assert re.search(r'<title>([^<]*)</title>', out)[1]=='0,0'

class Strict(HTMLParser):
    "HTML whose tags are closed in their order"
    def __init__(self):
        super().__init__()
        self.stack,self.tags = [],set()
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ('meta','img','input'): self.stack.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.add(tag)
    def handle_endtag(self, tag): assert self.stack.pop()==tag

def check(html):
    p = Strict()
    p.feed(html)
    assert p.stack==[] and not p.tags&{'script','iframe','link','object'} and 'javascript:' not in html
    for s in re.findall(r'<svg .*?</svg>', html, flags=re.S): ElementTree.fromstring(s)
    return p

numbers = st.lists(st.none()|st.floats(allow_nan=True, allow_infinity=True), max_size=30)
words = st.text(st.characters(codec='utf-8', exclude_categories=('Cs','Cc')), max_size=12)

@settings(deadline=None, max_examples=120)
@given(st.dictionaries(words, numbers, max_size=5), st.booleans(), words)
def test_any_line_chart_is_well_formed(series, log, title):
    html = line_chart(series, title, y=title, log=log, marks=[(1,title)])
    check(html)
    drawn = re.sub(r"<title>.*?</title>|<text.*?</text>|aria-label='.*?'", '', html)
    assert 'nan' not in drawn and 'inf' not in drawn

@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(words, st.floats()), max_size=12), words)
def test_any_text_and_table_is_well_formed(pairs, title):
    ts,vs = [t for t,_ in pairs],[v for _,v in pairs]
    parts = coloured_text(ts, vs, title),bars(dict(pairs)),table(ts or ['a'], [vs or [1]], title),heat_map([vs or [0.]], [title], ts or [title], title)
    page = Picture(''.join(parts), title)
    for html in (page.live(), page._repr_html_()): check(html)
    check(sparkline(vs, label=title))

def test_shown_pictures_survive_the_sanitizer():
    "In an untrusted notebook JupyterLab keeps neither SVG nor style: charts are images there, and what they say is in their words"
    html = Picture(line_chart({'a & b':[1, 2]}, 'loss')+sparkline([1, 2], label='drift'))._repr_html_()
    tags = check(html).tags
    assert 'svg' not in tags and html.count('<img ')==2 and 'alt="loss of a &amp; b"' in html and 'data:image/svg+xml,%3Csvg' in html

def test_saved_pages_need_nothing_else(tmp_path):
    board = LayerBoard(make(), every=1)
    board.learn.fit(1, .01)
    page = board.save(tmp_path/'b.html').read_text(encoding='utf8')
    check(page.replace('<!doctype html>', ''))
    assert not re.search(r'(src|href)=["\']?(http|//)|@import|url\((?!#)', page) and 'prefers-color-scheme:dark' in page
