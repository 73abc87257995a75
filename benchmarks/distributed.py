"""Two processes on this machine's cores against one: the same losses from the same global batch, seconds from the call to the first step, what interrupts leave behind.

Dropout is off, since each process draws its own. The language model trains on the bundled DBpedia texts, the classifier on them with their labels, groups opening one by
one. An interrupt comes as the signal that a notebook's stop button sends: at moments spread over the launch, and in a step. A process that dies does so in its third step, by an
error and by SIGKILL; it notes the time right before, and the notebook's error is timed against that."""
import os,signal,tempfile,threading,time,uuid
from pathlib import Path
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from common import line,parser,run
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.datasets import load_dataset
from ulmfit_t5.data.loaders import TextDataLoaders
from ulmfit_t5.models.awd_lstm import COMPACT_CLAS,COMPACT_LM
from ulmfit_t5.train.unfreeze import UnfreezeSchedule
from ulmfit_t5.learner import language_model_learner,text_classifier_learner
from ulmfit_t5.portable import open_learner
from ulmfit_t5.train.distributed import LinePanel,WorkerError

TINY = dict(emb_sz=16, n_hid=24, n_layers=2)
class Quiet(LinePanel):
    "Says nothing, and calls a function at the first step"
    def __init__(self, at_step=None):
        super().__init__(lambda s: None)
        self.at_step = at_step
    def on(self, m):
        if m['kind']=='step' and self.at_step:
            f,self.at_step = self.at_step,None
            f()

def lm(a, cache):
    n,bs = (60,4) if a.quick else (1500,32)
    texts = load_dataset('dbpedia')['train'].text.tolist()[:n]
    dls = TextDataLoaders.from_list(texts, is_lm=True, bs=bs, seq_len=24 if a.quick else 72, cache=cache, device='cpu', progress=False)
    return language_model_learner(dls, None, COMPACT_LM|(TINY if a.quick else {}), drop_mult=0, reg=dict(bf16=False)),dict(plan=1, lr=4e-3)

def classifier(a, cache):
    df = load_dataset('dbpedia')['train'].sample(100 if a.quick else 400, random_state=1)
    dls = TextDataLoaders.from_df(df, bs=8 if a.quick else 32, cache=cache, device='cpu', progress=False)
    kw = dict(drop_mult=0, head=dict(head_p=(0,0)), reg=dict(alpha=0, beta=0, bf16=False))
    learn = text_classifier_learner(dls, None, COMPACT_CLAS|(TINY if a.quick else {}), **kw)
    return learn,dict(plan=UnfreezeSchedule.gradual(len(learn.model.groups()), 1, 1, lr=1e-3))

def figures(a, n, nudge=0.):
    "Losses and times of both learners with `n` processes; 0 trains here, weights changed by a share of `nudge` before"
    out = {}
    with tempfile.TemporaryDirectory() as cache:
        for f in (lm,classifier):
            seed_everything(1)
            learn,kw = f(a, cache)
            for p in learn.model.parameters(): p.data *= 1+nudge*torch.randn_like(p)
            began = time.perf_counter()
            with learn.no_bar(),learn.no_logging():
                if n: learn.fit_distributed(**kw, n_procs=n, device='cpu', panel=Quiet())
                else: (learn.fit_one_cycle if 'lr' in kw else learn.fit_unfreeze)(*kw.values())
            r = learn.distributed if n else {}
            tokens = sum(r.get('tokens', [0]))
            out[f.__name__] = dict(losses=[float(o) for o in learn.recorder.losses], values=[float(o) for o in learn.recorder.values[-1][:2]],
                seconds=time.perf_counter()-began, first=r.get('first_step'), balance=r.get('balance'), tokens=tokens)
    return out

def alive(mark):
    "Processes other than this one that carry `mark` in their environment"
    def has(p):
        try: return int(p.name)!=os.getpid() and mark.encode() in (p/'environ').read_bytes()
        except OSError: return False
    return sum(map(has, Path('/proc').glob('[0-9]*')))

def interrupts(a):
    "Interrupt runs at many moments; count what is left half a second later"
    signal.signal(signal.SIGINT, signal.default_int_handler) # a shell lets what runs in the background ignore it
    mark = os.environ['ULMFIT_T5_MARK'] = uuid.uuid4().hex
    moments,left,kept = ([.5,None] if a.quick else [.1,.5,1,2,3,None,None,None,None,None]),[],0
    with tempfile.TemporaryDirectory() as cache:
        learn,kw = lm(a, cache)
        for s in moments:
            t = None if s is None else threading.Timer(s, lambda: os.kill(os.getpid(), signal.SIGINT))
            if t: t.start()
            try: learn.fit_distributed(1000, device='cpu', panel=Quiet(None if s else lambda: signal.raise_signal(signal.SIGINT)))
            except KeyboardInterrupt: kept += s is None and len(learn.recorder.losses)>0
            time.sleep(.5)
            left.append(alive(mark))
    return dict(left=sum(left), n=len(moments), kept=kept, in_step=moments.count(None))

def mortal(how, note):
    "A learner whose second process ends in its third step, and notes when"
    class Die(Callback):
        def before_batch(self):
            if os.environ.get('RANK')!='1' or self.iter<2: return
            Path(note).write_text(str(time.time()))
            if how=='SIGKILL': os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError('the second process has had enough')
    items = [(torch.randn(4), torch.tensor(i%3)) for i in range(64)]
    dls = DataLoaders(*[DataLoader(items, bs=8) for _ in range(2)], device='cpu')
    return Learner(dls, torch.nn.Linear(4, 3), loss_func=torch.nn.CrossEntropyLoss(), cbs=Die())

SAYS = dict(error='the second process has had enough', SIGKILL='process 1 of 2 ended by the signal SIGKILL')

def deaths(a):
    "Let a process die; seconds until the notebook knows, whether it says why, and whether it can train afterwards"
    out = {}
    with tempfile.TemporaryDirectory() as d:
        note = f'{d}/died'
        for how,why in SAYS.items():
            took,said,learn = [],0,mortal('', note)
            for _ in range(1 if a.quick else 3):
                try: learn.fit_distributed(2, device='cpu', build=mortal, build_args=dict(how=how, note=note), panel=Quiet())
                except WorkerError as e: said += why in str(e) and (how!='error' or 'Traceback' in str(e))
                took.append(time.time()-float(Path(note).read_text()))
            with learn.no_bar(),learn.no_logging(): learn.fit(1)
            out[how] = dict(took=took, said=said)
    return out

def rows(res, a):
    out = []
    for k in ('lm','classifier'):
        model = dict(lm='language model').get(k, k)+' in 2 processes'
        one,two,near = (res[o][0][k] for o in ('one process','two processes','one process, last digit changed'))
        for what in ('losses','values'):
            gap,floor = (max(abs(x-y) for x,y in zip(one[what], o[what])) for o in (two,near))
            name = 'loss of a step' if what=='losses' else 'loss of the last epoch, training and validation'
            note = f'{len(one[what])} compared; to reach 0.0001; weights changed in their last digit, 1e-7, make {floor:.1g}'
            out.append(line(f'{model}: largest difference in a {name}', gap, None, None, '', 'lower', note=note))
        out.append(line(f'{model}: from the call to the first step', two["first"], None, None, 's', 'lower', note='to reach 20'))
        out.append(line(f'{model}: balance of work', two['balance'], None, None, 'of 1', note='mean over largest time of a process on its own'))
        out.append(line(f'{model}: the whole call', two['seconds'], one['seconds'], one['seconds']/two['seconds'], 's', 'lower', 'one process', 'launch included; short on purpose'))
    i = res['interrupts'][0]
    out.append(line(f"processes left after {i['n']} interrupts", i['left'], None, None, '', 'lower', note='to reach 0'))
    out.append(line('interrupts in a step that kept what was learned', i['kept'], None, None, f"of {i['in_step']}"))
    for how,r in res['deaths'][0].items():
        what,n = 'its traceback' if how=='error' else 'a sentence that names the signal',len(r['took'])
        out.append(line(f"from a process's death by {how} to {what} in the notebook", max(r['took']), None, None, 's', 'lower', note=f'the longest of {n}; to reach 10; the notebook trains on'))
        out.append(line(f'deaths by {how} that were told with their reason', r['said'], None, None, f'of {n}'))
    return out

if __name__=='__main__':
    assert open_learner # what the processes call
    jobs = {'one process':lambda a: figures(a, 0), 'one process, last digit changed':lambda a: figures(a, 0, 1e-7), 'two processes':lambda a: figures(a, 2),
        'interrupts':interrupts, 'deaths':deaths}
    a = parser(__doc__).parse_args()
    a.rounds = a.rounds or 1 # losses are the same each time
    run(__file__, a, jobs, rows)
