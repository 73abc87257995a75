"The schedule bench: its line of code makes its plan, sliders and scripts set one state, the picture stands by itself, and the learner takes the plan"
import re
import numpy as np,pytest,torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from hypothesis import given,settings,strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from ulmfit_t5.train.unfreeze import UnfreezeSchedule
from ulmfit_t5.widgets.bench import *

def learner(n=3):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    dl = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), bs=8)
    m = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    return Learner(DataLoaders(dl, dl), m, nn.MSELoss(), splitter=lambda m: [list(o.parameters()) for o in m])

shares = st.floats(.02, .9).map(lambda v: round(v, 3))

@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(BENCH_RECIPES)), st.sampled_from(list(BENCH_SCHEDULES)), shares, *(st.floats(*o) for o in ((1,900),(1,5),(1e-5,1),(.25,5),(.25,8))),
    st.booleans(), st.integers(1, 9))
def test_the_line_makes_the_plan(recipe, schedule, cut, ratio, factor, peak, each, final, restart, n):
    s = BenchState(n, recipe, schedule, peak, factor, cut, ratio, 20, each, final, restart)
    ns = dict(UnfreezeSchedule=UnfreezeSchedule)
    exec(s.code(), ns)
    assert '\n' not in s.code() and ns['plan'].to_dict()==s.plan().to_dict()
    np.testing.assert_array_equal(ns['plan'].rates(20), s.plan().rates(20))

def test_every_control_sets_the_state_and_follows_it():
    b = ScheduleBench(schedule='inv_sqrt')
    b.widget()
    new = dict(recipe='full', schedule='stlr', peak=.02, factor=1.5, cut=.5, ratio=10., k=33, each=2., final=6., restart=False)
    assert set(b.view.controls)==set(new)
    for k,v in new.items():
        b.view.controls[k].value = v
        assert getattr(b.state, k)==pytest.approx(v), k
        assert f'u5-bench-{k}' in b.view.controls[k]._dom_classes
    b.set(cut=.25, recipe='gradual')
    assert b.view.controls['cut'].value==.25 and b.view.controls['recipe'].value=='gradual'

def test_a_knob_that_the_browser_puts_on_its_step_changes_nothing():
    "32 over 1 is between two steps of the slider, and comes back as 31.62; a hand that moves the knob by a step is heard"
    b = ScheduleBench(peak=.0023)
    b.widget()
    before = b.state
    b.view.controls['ratio'].value = 10**1.5
    b.view.controls['peak'].value = 10**-2.64
    assert b.state==before and 'ratio=32.0' in b.code and 'lr=0.0023' in b.code
    b.view.controls['ratio'].value = 10**1.55
    assert b.state.ratio==pytest.approx(35.48)

def test_a_picture_is_renewed_in_place():
    "Where the bench is shown, every change updates the one output that stays"
    class Handle:
        def __init__(self): self.seen = []
        def update(self, o): self.seen.append(o)
    b = ScheduleBench()
    b.widget()
    h = b.view.handle = Handle()
    b.view.controls['cut'].value = .4
    assert len(h.seen)==1 and 'cut_frac=0.4' in h.seen[0].picture.html()

def test_what_can_not_be_is_said_and_changes_nothing():
    b = ScheduleBench()
    b.widget()
    before = b.state
    b.view.controls['cut'].value = 0. # a slanted triangle that never climbs
    assert b.state==before and 'cut_frac' in b.view.error.value
    b.view.controls['cut'].value = .2
    assert b.state.cut==.2 and b.view.error.value==''

def test_the_picture_stands_by_itself():
    for kw in (dict(), dict(recipe='full', schedule='constant'), dict(n_groups=1, recipe='last_only'), dict(final=.25, each=.25)):
        p = ScheduleBench(**kw).picture()
        h = p._repr_html_()
        assert '<script' not in h and not re.search(r'(src|href)="(?!data:)', h) and len(h)<80_000
        assert 'alt="rates of' in h

def test_lanes_show_who_is_frozen():
    s = BenchState(n_groups=4)
    svg = rate_lanes(s.plan().rates(30), 30)
    assert svg.count('frozen</title>')==3 # every group but the top waits once
    assert rate_lanes(BenchState(recipe='full').plan().rates(30), 30).count('frozen</title>')==0

def test_apply_and_fit():
    learn = learner()
    b = ScheduleBench(learn, peak=.05, each=1., final=1.)
    assert b.state.n_groups==3 and b.steps_per_epoch==8
    plan = b.apply()
    assert learn.plan is plan and [p.requires_grad for p in learn.model.parameters()]==[False]*4+[True]*2
    np.testing.assert_allclose([h['lr'] for h in learn.opt.hypers], plan.rates(8)[0])
    with learn.no_bar(),learn.no_logging(): b.fit()
    np.testing.assert_allclose(learn.group_rates, plan.rates(8))
    assert all(p.requires_grad for p in learn.model.parameters())

def test_a_found_rate_becomes_the_peak_only_where_it_is_trusted():
    b = ScheduleBench(learner(), peak=.123, recipe='full')
    r = b.find_rate(n_steps=24, n_probes=2)
    assert b.state.peak==(float(f'{r.lr:.2g}') if r.trusted else .123)
    assert 'Rate search' in b.picture().html()

def test_buttons_need_a_learner():
    b = ScheduleBench()
    b.widget()
    assert all(o.disabled for o in b.view.buttons)
    with pytest.raises(ValueError, match='no learner'): b.fit()
    own = ScheduleBench(learner())
    own.widget()
    own.view.buttons[0].click()
    assert 'applied' in own.said and 'applied' in own.picture().html()

def t5_learner():
    from ulmfit_t5.models.t5 import T5,T5Config
    m = T5(T5Config(vocab_sz=40, d_model=8, d_kv=4, d_ff=16, n_layers=4, n_heads=2))
    dl = DataLoader(TensorDataset(torch.zeros(64, 4)), bs=8)
    return Learner(DataLoaders(dl, dl), m, nn.MSELoss(), splitter=lambda m: m.groups())

def test_every_group_of_a_t5_has_its_name_and_its_curve():
    "Blocks of two stacks: five names, five whole labels, five curves, the top one with the peak"
    b = ScheduleBench(t5_learner(), peak=.01)
    assert b.names==['embed',*(f'blocks.{i}, encoder + decoder' for i in range(4))]
    lanes,chart = re.findall(r'<svg .*?</svg>', b.picture().body, flags=re.S)
    assert chart.count("stroke-width='1.6'")==5
    for i,n in enumerate(b.names): assert f'>{i} {n}</text>' in lanes and f'<title>{i} {n}</title>' in chart
    for x,label in re.findall(r"<text x='(\d+)' y='[\d.]+' text-anchor='end'[^>]*>([^<]*)<", lanes): assert 6*len(label)<=int(x)

def test_curves_of_equal_names_are_kept():
    b = ScheduleBench(learner())
    b.names = ['a']*3
    chart = re.findall(r'<svg .*?</svg>', b.picture().body, flags=re.S)[1]
    assert chart.count("stroke-width='1.6'")==3

def test_a_group_has_one_colour_on_bench_and_cockpit():
    from ulmfit_t5.widgets.cockpit import Cockpit
    colours = lambda svg: dict(map(reversed, re.findall(r"<path d='[^']*' fill='none' stroke='(#\w+)'[^>]*><title>(\d [^<]*)</title>", svg)))
    learn = learner()
    panel = Cockpit(learn)
    with learn.no_bar(),learn.no_logging(): learn.fit(1)
    a,b = colours(ScheduleBench(learn).picture().body),colours(panel.picture().body)
    assert len(a)==3 and a==b

@pytest.mark.parametrize('n', [0,-1,2.5,True])
def test_no_updates_to_an_epoch_is_a_sentence(n):
    with pytest.raises(ValueError, match='steps_per_epoch is .*: give a number of updates'): ScheduleBench(steps_per_epoch=n)
