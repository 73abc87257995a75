"Replay from files: the values of the training at every step, two runs paired, pages that play by themselves, and sentences for what cannot be played"
import json,math,re,subprocess
from shutil import which
import numpy as np,pytest,torch
from hypothesis import given,settings,strategies as st
from torch import nn
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from ulmfit_t5.core import seed_everything
from ulmfit_t5.train.events import RunLog,read_log,to_line
from ulmfit_t5.train.steer import steering
from ulmfit_t5.train.unfreeze import UnfreezeSchedule
from ulmfit_t5.widgets.board import LayerBoard
from ulmfit_t5.widgets.replay import *
from ulmfit_t5.widgets.replay_page import *

def make(seed=0, widths=(6,8,8,1), **kw):
    seed_everything(seed)
    x = torch.randn(64, 6)
    dl = DataLoader(list(zip(x, x.sum(1, keepdim=True))), bs=4, device='cpu')
    model = nn.Sequential(*[nn.Linear(i, o) for i,o in zip(widths, widths[1:])])
    split,far = lambda m: [list(o.parameters()) for o in m],lambda p,y: (p-y).abs().mean()
    learn = Learner(DataLoaders(dl, dl), model, nn.MSELoss(), splitter=split, metrics=far, **kw)
    learn.logger = lambda *_: None
    return learn

@pytest.fixture(scope='module')
def logs(tmp_path_factory):
    "Two runs from the same start: everything, and from the top down with a command in between"
    d = tmp_path_factory.mktemp('logs')
    for name,sched in dict(full=UnfreezeSchedule.full(3, 4, lr=.02), gradual=UnfreezeSchedule.gradual(3, 1, 3, lr=.02)).items():
        learn = make()
        if name=='gradual': steering(learn).send('freeze', group=0, at=50)
        learn.fit_unfreeze(sched, cbs=RunLog(d/f'{name}.jsonl', name, every=4))
    return d/'full.jsonl',d/'gradual.jsonl'

def test_replay_is_the_live_board(tmp_path):
    "At the last step the replay draws, number by number, what the board showed when the training ended"
    learn = make()
    board = LayerBoard(learn, every=2)
    learn.fit(2, .02, cbs=RunLog(tmp_path/'a.jsonl'))
    t = Replay(tmp_path/'a.jsonl').tracks[0].trace
    assert t.steps==board.trace.steps and t.names==board.trace.names
    for row in t.rows:
        for k in ('grad','update','drift','mean','sd','dead','rate'):
            a,b = t.series(row, k),board.trace.series(row, k)
            np.testing.assert_allclose(np.array(a, float), np.array(b, float), rtol=2e-4, atol=1e-9)

def test_values_at_every_step(logs):
    "Loss and metrics are those known then: nothing of the future is shown"
    run,r = read_log(logs[0]),Replay(logs[0])
    ends = [e['step'] for e in run.epochs]
    for s in range(len(run)):
        v = r.values(s)['full']
        done = [e for e in run.epochs if e['step']<=s]
        assert v['training loss']==smooth(run.loss[:s+1])[-1]
        assert v['valid_loss']==done[-1]['values']['valid_loss'] if done else math.isnan(v['valid_loss'])
    assert ends==[15,31,47,63] and r.last==63

def test_future_is_not_drawn(logs):
    "The picture of step 10 knows no later place in its lines and no later sample"
    early,late = (Replay(logs[0]).picture(s).html() for s in (10,63))
    count = lambda h: sum(len(re.findall('[ML]', d)) for d in re.findall(r"<path d='([^']*)' fill='none'", h))
    assert count(early)<count(late)/2 and 'step 10 of 63' in Replay(logs[0]).picture(10).html()

def test_pairs(logs):
    two = Replay(*logs)
    assert two.names==['full','gradual'] and two.last==79
    a,b = two.values(40).values()
    d = two.differences(40)
    assert d['valid_loss']==b['valid_loss']-a['valid_loss'] and set(d)==set(a)
    rows = two.group_rows(20)
    assert [r[0] for r in rows]==['2 2','1 1','0 0'] and [r[4] for r in rows]==[True,True,False] and [r[1] for r in rows]==[True]*3
    for r in rows: assert r[7]==pytest.approx(r[6]-r[3])
    assert [r[4] for r in two.group_rows(60)]==[True,True,False] # the command of step 50
    same = Replay(logs[0], logs[0])
    assert same.names==['full (A)','full (B)'] and set(same.differences().values())=={0.}

def test_position_stays_inside(logs):
    r = Replay(logs[0])
    for s,want in ((-5,0),(7.9,7),(10**9,63)):
        r.position = s
        assert r.position==want and r.picture().html()

def test_scrubber_and_object_agree(logs):
    r = Replay(*logs)
    r.widget()
    v = r.view
    v.slider.value = 33
    assert r.position==33 and 'step 33 of 79' in v.html.value
    r.position = 12
    assert v.slider.value==12 and 'step 12 of 79' in v.html.value
    for label,ms in (('a quarter',400),('half',200),('once',100),('twice',50),('four times',25),('eight times',12)):
        v.speed.label = label
        assert v.play.interval==ms
    assert v.play.tooltip and v.slider.description=='step'

def test_pages_play_what_the_object_says(logs, tmp_path):
    "Every frame of the page, put together from its changes, has the texts of the replay at that step"
    r = Replay(*logs)
    page = r.export(tmp_path/'p.html', frames=30).read_text(encoding='utf8')
    data = json.loads(re.search(r'id="u5-data">(.*?)</script>', page)[1])
    text = {}
    assert len(data['steps'])==30 and data['steps'][0]==0 and data['steps'][-1]==r.last
    for s,c in zip(data['steps'], data['changes']):
        text.update(c)
        assert [text[str(i)] for i in range(len(text))]==frame(r, s)
    assert not re.search(r'(src|href)=["\']?(http|//)|@import', page) and len(page)<100_000

def test_pages_move_in_a_browser(logs, tmp_path):
    "Chromium, without a network: the slider moves the veil and the cells, and the page stands where it should"
    chrome = which('chromium') or which('chromium-browser') or which('google-chrome')
    if chrome is None: pytest.skip('needs Chromium on the PATH')
    r = Replay(*logs)
    page = r.export(tmp_path/'p.html', frames=20)
    data = json.loads(re.search(r'id="u5-data">(.*?)</script>', page.read_text())[1])
    poke = "<script>const s=document.getElementById('u5-step');s.value=4;s.dispatchEvent(new Event('input'))</script></body>"
    page.write_text(page.read_text().replace('</body>', poke))
    cmd = [chrome,'--headless','--no-sandbox','--disable-gpu',f'--user-data-dir={tmp_path}/profile','--dump-dom',page.as_uri()]
    dom = subprocess.run(cmd, capture_output=True, text=True, timeout=60).stdout
    step = data['steps'][4]
    assert f'step {step} of {r.last}</output>' in dom
    assert [t for _,t in sorted((int(i),t) for i,t in re.findall(r'data-c="(\d+)">([^<]*)<', dom))]==frame(r, step)
    xs = [float(x) for x in re.findall(r'<path stroke="#888" d="M([\d.]+) \d+V\d+"', dom)]
    assert len(xs)==4 and all(60<x<250 for x in xs)

@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text(max_size=3), min_size=4, max_size=4), min_size=1, max_size=8))
def test_changes_give_every_frame_back(frames):
    text = {}
    for f,c in zip(frames, changes(frames)):
        text.update(c)
        assert [text[i] for i in range(4)]==f

@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6)|st.just(math.nan), max_size=40))
def test_smooth_stays_between(ys):
    ok = [y for y in ys if math.isfinite(y)]
    for y in smooth(ys):
        if math.isfinite(y): assert min(ok)-1e-6*abs(min(ok))-1e-9<=y<=max(ok)+1e-6*abs(max(ok))+1e-9

def test_what_cannot_be_played(logs, tmp_path):
    "Sentences: too many, no log, later version, other groups, no steps"
    with pytest.raises(ValueError, match='given 3'): Replay(*logs, logs[0])
    with pytest.raises(FileNotFoundError, match='there is no log'): Replay(tmp_path/'x.jsonl')
    (tmp_path/'x.csv').write_text('a,b\n')
    with pytest.raises(ValueError, match='is not an event log'): Replay(tmp_path/'x.csv')
    (tmp_path/'new.jsonl').write_bytes(to_line('log', format='ulmfit_t5.events', version=99))
    with pytest.raises(ValueError, match='version 99.*update the package'): Replay(tmp_path/'new.jsonl')
    make(widths=(6,8,1)).fit(1, .01, cbs=RunLog(tmp_path/'two.jsonl', 'two groups'))
    with pytest.raises(ValueError, match='full: 0, 1, 2; two groups: 0, 1: replay them one by one'): Replay(logs[0], tmp_path/'two.jsonl')
    (tmp_path/'empty.jsonl').write_bytes(b''.join(logs[0].read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match='holds no training step'): Replay(tmp_path/'empty.jsonl')

def test_a_torn_log_plays_and_says_so(logs, tmp_path):
    b = logs[0].read_bytes()
    (tmp_path/'torn.jsonl').write_bytes(b[:-len(b)//3])
    r = Replay(tmp_path/'torn.jsonl')
    assert 0<r.last<63 and 'the last line of the log is torn and left out' in r.picture().html()
