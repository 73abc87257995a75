"Adapters on a T5: the board tells what trains inside a block and what stands still, and freezing, opening and resetting touch the adapters alone"
import importlib,re,sys
import pytest,torch
try: importlib.import_module('torchvision')
except (ImportError,RuntimeError): sys.modules['torchvision'] = None # built for another torch: peft's transformers can do without, if it does not see it
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
from torch.utils.data import DataLoader,TensorDataset
from ulmfit_t5.core import seed_everything
from ulmfit_t5.models.t5 import T5,T5Config,T5Loss
from ulmfit_t5.train.events import RunLog
from ulmfit_t5.train.groups import group_splitter
from ulmfit_t5.train.steer import *
from ulmfit_t5.widgets.board import LayerBoard
from ulmfit_t5.widgets.replay import Replay

class Adapter(nn.Module):
    "A bottleneck behind a block, near the identity at first (Houlsby et al. 2019)"
    def __init__(self, block, d, r=4):
        super().__init__()
        self.block,self.down,self.up = block,nn.Linear(d, r),nn.Linear(r, d)
        nn.init.normal_(self.up.weight, std=1e-3)
    def forward(self, x):
        h = self.block(x)
        return h+self.up(self.down(h).relu())

def t5():
    seed_everything(0)
    return T5(T5Config(vocab_sz=40, d_model=8, d_kv=4, d_ff=16, n_layers=2, n_heads=2))

def bottlenecks():
    "Around the feed-forward of every block; all else is frozen"
    m = t5().requires_grad_(False)
    for s in (m.encoder,m.decoder):
        for b in s.blocks: b.ff = Adapter(b.ff, 8)
    for a in adapters(m): a.requires_grad_(True)
    return m

def adapters(m): return [o for n,p in m.named_modules() if isinstance(p, Adapter) for o in (p.down,p.up)]

def lora():
    peft = pytest.importorskip('peft', reason='LoRA is shown on peft, an optional peer: pip install peft')
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=['q','v'], init_lora_weights=False), t5())

KINDS = dict(bottleneck=(bottlenecks,r'\.(down|up)\.'), lora=(lora,r'lora_[AB]'))

def by_role(m):
    "The T5's own parameters below, one group of adapters above"
    ps = list(m.named_parameters())
    return [[p for n,p in ps if not re.search(r'\.(down|up)\.|lora_', n)], [p for n,p in ps if re.search(r'\.(down|up)\.|lora_', n)]]

def learner(m, splitter=group_splitter):
    ids = torch.randint(2, 40, (48, 6))
    ds = TensorDataset(ids, ids, ids)
    learn = Learner(DataLoaders(DataLoader(ds, batch_size=8), DataLoader(ds, batch_size=24), device='cpu'), m, T5Loss(m), splitter=splitter, lr=.01)
    learn.dls.n_inp = 2
    learn.logger = lambda *_: None
    return learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])

def moved(learn, before): # names of what is not as it was
    return {n for n,p in learn.model.named_parameters() if not p.equal(before[n])}

def weights(learn): return {n:p.detach().clone() for n,p in learn.model.named_parameters()}

@pytest.mark.parametrize('kind', KINDS)
def test_by_groups(kind, tmp_path):
    "Grouped by `groups()`, each block holds its adapters: freeze one, open it again, reset one; the T5's own weights never move"
    make,own = KINDS[kind]
    learn = learner(make())
    assert all(any(re.search(own, n) for n in names) for names in groups_of(learn)[1:])
    board,first = LayerBoard(learn, every=1),weights(learn)
    board.widget()
    for g in (1,2): assert state(board, g)=='partly'
    assert state(board, 0)=='frozen'
    board.freeze(1)
    learn.fit(1, cbs=RunLog(tmp_path/'run.jsonl', kind))
    a = moved(learn, first)
    assert a and all(re.search(own, n) for n in a) and not a&groups_of(learn)[1] and (state(board, 1),state(board, 2))==('frozen','partly')
    board.thaw(1)
    learn.fit(1)
    assert moved(learn, first)=={n for n in first if re.search(own, n)} and state(board, 1)=='partly'
    board.reset(2)
    assert moved(learn, first)=={n for n in groups_of(learn)[1] if re.search(own, n)}
    assert board.failed is None

def groups_of(learn): # names of the parameters of each group
    name = {id(p):n for n,p in learn.model.named_parameters()}
    return [{name[id(p)] for p in g} for g in steering(learn).params]

def state(board, g, layer=None):
    "The word beside a group, from the table"
    rows = board.html().split('<tr>')[2:]
    return re.search(r'</span> (open|partly|frozen)</span>', next(r for r in rows if re.search(rf'<b>{g}</b>', r)))[1]

@pytest.mark.parametrize('kind', KINDS)
def test_by_a_splitter(kind):
    "All adapters in one group above the T5: gone with one click, and the T5 itself opens with another"
    make,own = KINDS[kind]
    learn = learner(make(), by_role)
    board,first = LayerBoard(learn, every=1),weights(learn)
    assert (state(board, 0),state(board, 1))==('frozen','open')
    board.freeze(1)
    learn.fit(1)
    assert not moved(learn, first) and [(s.open,s.lr) for s in board.stats.samples[-1:]]==[([False,False],[0.,0.])]
    board.release(1)
    board.thaw(0)
    learn.fit(1)
    assert moved(learn, first)&groups_of(learn)[0] and moved(learn, first)&groups_of(learn)[1] and state(board, 0)=='open'

@pytest.mark.parametrize('kind', KINDS)
def test_layers_of_a_block(kind, tmp_path):
    "Opened, a block shows its adapters open at the group's rate and its own layers frozen at 0, live and in the replay"
    make,own = KINDS[kind]
    learn = learner(make())
    board = LayerBoard(learn, every=1)
    learn.fit(1, cbs=RunLog(tmp_path/'run.jsonl', kind))
    live = board.open(1).html().split('<b>1</b>')[1].split('<b>0</b>')[0].split('<tr>')[1:-1]
    names = [l[0] for l in board.trace.layers if l[3]==1][::-1]
    assert len(live)==len(names) and any(re.search(own, n+'.') for n in names)
    for n,r in zip(names, live): assert ('</span> open' in r)==bool(re.search(own, n+'.')) and ('>0</td>' in r)!=('</span> open' in r), n
    t = Replay(tmp_path/'run.jsonl').tracks[0].trace
    assert t.parts([False,True,True])==[bool(re.search(own, l[0]+'.')) for l in t.layers]
