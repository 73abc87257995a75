"The rate search: nothing is left of it, it finds what a grid finds, and it refuses where there is nothing to find"
import numpy as np,pytest,torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from torch.utils.data import TensorDataset
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.loaders import TextDataLoaders
from ulmfit_t5.learner import text_classifier_learner
from ulmfit_t5.train.lr_find import *
from ulmfit_t5.train.record import History
from ulmfit_t5.train.steer import steering

TINY = dict(emb_sz=16, n_hid=24, n_layers=2, hidden_p=.3, input_p=.4, embed_p=.05, weight_p=.5, output_p=.4)

def regression(noise=.3, opt=None, seed=1):
    seed_everything(seed)
    w,x = torch.randn(8, 1),torch.randn(256, 8)
    y = x@w+noise*torch.randn(256, 1)
    dls = DataLoaders(DataLoader(TensorDataset(x, y), bs=16, shuffle=True), DataLoader(TensorDataset(x, y), bs=64))
    return Learner(dls, nn.Linear(8, 1), nn.MSELoss(), lr=.1, **(dict(opt_func=opt) if opt else {}))

def texts():
    import pandas as pd
    kinds = dict(river='It flows north through a valley into the lake.', song='The band played a new tune on the radio that year.')
    return pd.DataFrame([dict(text=f'{v} {k} {i}', label=k) for i in range(24) for k,v in kinds.items()])

def classifier():
    seed_everything(2)
    dls = TextDataLoaders.from_df(texts(), valid_pct=.25, bs=8, progress=False)
    return text_classifier_learner(dls, None, config=TINY, verbose=False)

def train(learn, first):
    "Weights, optimiser and generator after a fit that has or has not been preceded by a search"
    with learn.no_bar(),learn.no_logging():
        learn.fit(1, 1e-3)
        if first: search_rate(learn, n_probes=2, n_steps=24)
        learn.fit(1, 1e-3)
    opt = [torch.as_tensor(v).clone() for s in learn.opt.state_dict()['state'] for v in s.values() if torch.is_tensor(v)]
    return [p.clone() for p in learn.model.state_dict().values()],opt,torch.rand(3),[h['lr'] for h in learn.opt.hypers]

@pytest.mark.parametrize('make', [regression,classifier])
def test_nothing_is_left_of_a_search(make):
    "Training goes on to the bit as if there had been none: weights, buffers, optimiser, order of batches, dropout"
    a,b = train(make(), True),train(make(), False)
    for x,y in zip(a, b): assert all(torch.equal(torch.as_tensor(i), torch.as_tensor(j)) for i,j in zip(x, y)) and len(x)==len(y)

def test_a_learner_that_never_trained_stays_so():
    learn = regression()
    before,cbs,mode = learn.model.weight.clone(),list(learn.cbs),learn.model.training
    learn.find_rate(show=False, n_probes=1, n_steps=20)
    assert learn.opt is None and torch.equal(learn.model.weight, before) and set(learn.cbs)==set(cbs) and learn.model.training==mode
    assert all(p.grad is None for p in learn.model.parameters())

def test_frozen_groups_stay_frozen_and_watchers_see_nothing():
    learn = classifier()
    learn.add_cb(History())
    learn.freeze()
    search_rate(learn, n_probes=1, n_steps=20)
    assert learn.opt.frozen_idx>0 and not any(p.requires_grad for p in learn.model.encoder.parameters())
    assert not getattr(learn.history, 'steps', {}).get('loss')

def test_an_error_inside_leaves_no_trace():
    learn = regression()
    before = learn.model.weight.clone()
    with pytest.raises(ZeroDivisionError):
        with untouched(learn):
            learn.model.weight.data.zero_()
            1/0
    assert torch.equal(learn.model.weight, before) and learn.opt is None

def test_a_divergence_ends_a_probe_without_noise():
    "Rates up to a thousand: the probe stops, weights are whole, no guard raises"
    learn = classifier()
    r = search_rate(learn, n_probes=2, n_steps=30, end=1e3)
    assert np.isnan(r.change[:,-1]).any() or r.change[:,-1].max()>0
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())

def test_the_rate_is_a_good_one():
    "Within a factor of ten of the best rate of a grid, and hardly worse"
    lrs = np.geomspace(1e-3, 1, 7).tolist()
    def final(lr):
        learn = regression()
        with learn.no_bar(),learn.no_logging():
            learn.fit(2, lr)
            return float(learn.validate()[0])
    r = regression().find_rate(show=False)
    losses = [final(lr) for lr in lrs]
    best = lrs[int(np.nanargmin(losses))]
    assert r.trusted and .1<=r.lr/best<=10
    assert final(r.lr)<1.5*np.nanmin(losses)+.05

@pytest.mark.parametrize('seed', range(4))
def test_noise_has_no_rate(seed):
    "Targets without a cause, a model that starts at the best there is: no rate, or one that is not to be trusted"
    learn = regression(noise=1., seed=seed)
    x = torch.randn(256, 8)
    learn.dls = DataLoaders(*(DataLoader(TensorDataset(x, torch.randn(256, 1)), bs=16, shuffle=True) for _ in range(2)))
    with torch.no_grad():
        for p in learn.model.parameters(): p.zero_()
    r = search_rate(learn, end=.02)
    assert r.lr is None or not r.trusted
    if r.lr is None: assert 'flat' in r.why

def test_sentences_for_numbers_that_make_no_sweep():
    with pytest.raises(ValueError, match='rates above 0 that rise'): search_rate(regression(), start=1., end=.1)
    with pytest.raises(ValueError, match='20 steps'): search_rate(regression(), n_steps=3)

def test_the_same_seed_gives_the_same_answer():
    a,b = (search_rate(classifier(), n_probes=2, n_steps=20) for _ in range(2))
    np.testing.assert_array_equal(a.change, b.change)
    assert a.lr==b.lr

def test_smoothing():
    x = np.random.default_rng(0).normal(size=(2,50))
    assert triangle_mean(x, 3).std()<x.std() and np.allclose(triangle_mean(np.ones(9), 2), 1)
    x[0,40:] = np.nan
    s = triangle_mean(x, 3)
    assert np.isnan(s[0,40:]).all() and np.isfinite(s[0,:40]).all()

def test_what_is_frozen_on_a_panel_stands_still_in_the_probe():
    learn = classifier()
    s = steering(learn)
    s.send('freeze', group=0)
    embed = learn.model.encoder.embed.weight
    was,seen = embed.detach().clone(),[]
    class See(Callback):
        def after_step(self): seen.append((embed.equal(was), embed.requires_grad))
    see = See()
    learn.add_cb(see)
    search_rate(learn, n_probes=1, n_steps=20, start=1e-2)
    assert seen and set(seen)=={(True,False)} and embed.requires_grad and s.frozen[0] and s.opens=={0:False}
    for g in range(len(s.params)): s.send('freeze', group=g)
    with pytest.raises(ValueError, match='every group is frozen'): search_rate(learn, n_probes=1, n_steps=20)
    assert all(p.requires_grad for p in learn.model.parameters())
