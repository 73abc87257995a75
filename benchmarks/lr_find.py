"""The rate search against a grid: how far from the best rate of eight, in factors, and how much worse the model is that is trained at it; fastai's
`lr_find` (valley) beside it. Five trainings of different kinds, each with a slanted triangle of the same number of updates at every rate of the grid,
and two that have nothing to learn, where the right answer is none."""
import math,time
from common import line,parser,write

RATES = [1e-4*10**(i/2) for i in range(8)] # 1e-4 to 0.32

def frame(n, seed, shuffled=False):
    from ulmfit_t5.all import load_dataset
    df = load_dataset('dbpedia', 'train').sample(n, random_state=seed).reset_index(drop=True)
    return df.assign(label=df.label.sample(frac=1, random_state=1).to_numpy()) if shuffled else df

def classifier(start, n, config=None, opts=None, shuffled=False):
    "Function that makes a learner of labelled texts"
    def make():
        from ulmfit_t5.all import TextDataLoaders,seed_everything,text_classifier_learner
        seed_everything(0)
        dls = TextDataLoaders.from_df(frame(n, 0, shuffled), valid_pct=.25, bs=16, seed=0, progress=False)
        kw = dict(config=config) if config else {}
        return text_classifier_learner(dls, start, drop_mult=.3, verbose=False, **kw|(opts or {}))
    return make

def lm(n):
    def make():
        from ulmfit_t5.all import TextDataLoaders,language_model_learner,seed_everything
        seed_everything(0)
        dls = TextDataLoaders.from_df(frame(n, 1), is_lm=True, valid_pct=.15, bs=16, seq_len=40, progress=False)
        return language_model_learner(dls, 'awd-lstm-fwd', drop_mult=.2, verbose=False)
    return make

def t5(n):
    "From scratch: the label of a text, as text"
    def make():
        from ulmfit_t5.all import Text2TextDataLoaders,bundled_tokenizer,seed_everything,text2text_learner,vocab_config
        seed_everything(0)
        tok,df = bundled_tokenizer(),frame(n, 2)
        df = df.rename(columns=dict(text='input', label='target'))[['input','target']].astype(str)
        df.input = df.input.str[:160]
        dls = Text2TextDataLoaders.from_source(df, tok, valid_pct=.2, bs=16, inputs_length=64, targets_length=12)
        return text2text_learner(dls, vocab_config(tok, d_model=64, d_ff=128, n_layers=2, n_heads=4, d_kv=16), opt_func='adamw')
    return make

def features(n, shuffled=False):
    "Counted words through a small network, by fastai's own Learner and Adam"
    def make():
        import torch
        from fastai.data.core import DataLoaders
        from fastai.data.load import DataLoader
        from fastai.learner import Learner
        from sklearn.feature_extraction.text import TfidfVectorizer
        from ulmfit_t5.core import seed_everything
        seed_everything(0)
        df = frame(n, 3, shuffled)
        x = torch.tensor(TfidfVectorizer(max_features=500).fit_transform(df.text).toarray(), dtype=torch.float32)
        y = torch.tensor(df.label.astype('category').cat.codes.to_numpy(), dtype=torch.long)
        cut = int(.75*len(x))
        ds = [torch.utils.data.TensorDataset(x[s], y[s]) for s in (slice(None, cut),slice(cut, None))]
        dls = DataLoaders(DataLoader(ds[0], bs=16, shuffle=True, drop_last=True), DataLoader(ds[1], bs=64))
        net = torch.nn.Sequential(torch.nn.Linear(500, 64), torch.nn.ReLU(), torch.nn.Linear(64, 14))
        return Learner(dls, net, torch.nn.CrossEntropyLoss())
    return make

def tasks(quick):
    n = 100 if quick else 1200
    small = dict(emb_sz=64, n_hid=96, n_layers=2, hidden_p=.3, input_p=.4, embed_p=.05, weight_p=.5, output_p=.4)
    real = {'classifier, pretrained':classifier('awd-lstm-fwd', n), 'small classifier, from scratch':classifier(None, n, small), 'language model, pretrained':lm(n),
        'small T5, from scratch':t5(n), 'counted words':features(n)}
    none = {'counted words, labels shuffled':features(n, True), 'small classifier, labels shuffled':classifier(None, n, small, shuffled=True)}
    return ({k:real[k] for k in ('counted words',)},dict(list(none.items())[:1])) if quick else (real,none)

def final(make, lr, steps):
    "Validation loss after `steps` updates at most, on a slanted triangle with the peak `lr`"
    from fastai.callback.core import Callback,CancelFitException
    from ulmfit_t5.train.schedules import schedule
    learn = make()
    class Triangle(Callback):
        order,run_valid = 60,False
        def before_batch(self): self.opt.set_hyper('lr', lr*float(shape(self.train_iter/steps, steps)))
        def after_batch(self):
            if self.train_iter>=steps: raise CancelFitException()
    shape = schedule('stlr')
    with learn.no_bar(),learn.no_logging():
        try: learn.fit(-(-steps//len(learn.dls.train)), cbs=[Triangle()])
        except Exception as e:
            if type(e).__name__!='NonFiniteError': raise
            return math.inf
        loss = float(learn.validate()[0])
    return loss if math.isfinite(loss) else math.inf

def valley(make):
    "fastai's answer, and the forward and backward passes it took"
    import matplotlib
    matplotlib.use('agg')
    learn = make()
    with learn.no_bar(): return float(learn.lr_find(show_plot=False).valley)

def main():
    p = parser(__doc__)
    p.add_argument('--steps', type=int, default=150, help='updates of each training of the grid')
    p.add_argument('--probes', type=int, default=3)
    p.add_argument('--only', default='', help='trainings whose names hold this')
    a = p.parse_args()
    import numpy as np,torch
    from ulmfit_t5.train.lr_find import search_rate
    torch.set_num_threads(a.threads)
    began,rows,(real,none) = time.time(),[],tasks(a.quick)
    steps,rates = (20,RATES[::3]) if a.quick else (a.steps,RATES)
    kw = dict(n_probes=2, n_steps=20) if a.quick else dict(n_probes=a.probes)
    away = {'ours':[], 'fastai':[]}
    for name,make in real.items():
        if a.only not in name: continue
        grid = [final(make, lr, steps) for lr in rates]
        best,least = rates[int(np.argmin(grid))],min(grid)
        r,them = search_rate(make(), **kw),valley(make)
        us = r.lr or math.nan
        off = lambda lr: max(lr/best, best/lr) if lr and math.isfinite(lr) else 1e4
        away['ours'].append(off(us)),away['fastai'].append(off(them))
        seen = ' '.join(f'{g:.3g}' for g in grid)
        rows.append(line(f'{name}: factor from the best rate', off(us), off(them), off(them)/off(us), 'times', 'lower', 'fastai lr_find, valley',
            f'best of the grid {best:.2g}, ours {us:.2g}{"" if r.trusted else ", not to be trusted"}, valley {them:.2g}; losses {seen}'))
        ours,theirs = (final(make, lr, steps) if math.isfinite(lr) else math.inf for lr in (us,them))
        worse = [max(o-least, 0.) if math.isfinite(o) else 99. for o in (ours,theirs)]
        rows.append(line(f'{name}: validation loss above the best', *worse, (worse[1]+.01)/(worse[0]+.01), 'nats', 'lower', 'fastai lr_find, valley', f'best {least:.3g}; ratio with 0.01 added to both'))
    for name,make in none.items():
        if a.only not in name: continue
        r,them = search_rate(make(), **kw),valley(make)
        rows.append(line(f'{name}: rate named with trust (0 is right)', float(r.trusted), 1., 2-r.trusted, 'of 1', 'lower', 'fastai lr_find, valley', f'ours: {r}; valley names {them:.2g}'))
    if away['ours']:
        gm = {k:float(np.exp(np.mean(np.log(v)))) for k,v in away.items()}
        rows.append(line(f'distance of the learning rate found from the best one, mean of {len(away["ours"])} trainings', gm['ours'], gm['fastai'],
            gm['fastai']/gm['ours'], 'times', 'lower', 'fastai lr_find, valley', f'geometric mean of the factors; trainings of {steps} updates'))
    write('lr_find', a, rows, time.time()-began)

if __name__=='__main__': main()
