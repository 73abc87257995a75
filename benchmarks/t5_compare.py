"""Does an exercise without labels teach a T5 to compare? STS-B after the same fine-tuning, from random weights (with the embedding of awd-lstm-fwd): as they are, with a head that
begins as a search for tokens like its own, with minutes of marking what two texts share (Wikipedia), and with both. Beside them ridge regression on TF-IDF of both sides, with all labels. The Wikipedia text
and STS-B are read from $ULMFIT_T5_DATA.

A score is the mean of Pearson's and Spearman's correlation, times 100; the same number for all texts counts 0."""
import statistics,tempfile,time
from pathlib import Path
from common import line,parser,write
from t5_tasks import SIDES,fit,tfidf

WAYS = {'as they are':(False,False), 'a head that looks for its like':(True,False), 'marking, from ordinary heads':(False,True), 'marking, with that head':(True,True)}

def corpora(a, tok, tmp):
    "Wikipedia to learn from and to validate with, as ids"
    from ulmfit_t5.core import data_home
    from ulmfit_t5.pretrain import tokenized
    if not (home := data_home()): raise SystemExit('this needs the text of wikipedia-en-2015: set ULMFIT_T5_DATA to a folder that holds it')
    d,text = home/'wikipedia-en-2015',Path(tmp)/'text'
    text.mkdir()
    for i in range(a.files): (text/f'train-{i:02}.txt.xz').symlink_to(d/f'train-{i:02}.txt.xz')
    return tokenized(text, d/'valid.txt.xz', tok, Path(tmp)/'ids', 20 if a.quick else 0)

def begin(a, tok, c, v, head, marking, seed, out):
    "A T5 before fine-tuning, and the share of held-out tokens that it marks rightly"
    from ulmfit_t5.comparing import ComparingRun,SharedTokens,look_for_like
    from ulmfit_t5.core import seed_everything
    from ulmfit_t5.data.objectives import SpecialIds
    from ulmfit_t5.models.t5 import T5_SIZES
    from ulmfit_t5.pretrain_t5 import begin_with
    from ulmfit_t5.writer import load_t5
    seed_everything(seed)
    model = load_t5(None, tok, **T5_SIZES['compact']|dict(vocab_sz=SpecialIds.of(tok).vocab_sz))
    begin_with(model, 'awd-lstm-fwd')
    if head: look_for_like(model, seed=seed)
    run = ComparingRun(out, model, SharedTokens(c, tok, seed=seed), [SharedTokens(v, tok, 64, seed=seed)[0]], steps=10**9, budget=60*a.minutes, seed=seed)
    if marking: run.train(verbose=False)
    return model,run.accuracy() if marking else None

def main():
    p = parser(__doc__)
    p.add_argument('--minutes', type=float, default=2, help='of marking')
    p.add_argument('--steps', type=int, default=150, help='of fine-tuning, 8 packed rows of 256 tokens')
    p.add_argument('--lr', type=float, default=5e-3, help='peak rate of Adafactor in fine-tuning')
    p.add_argument('--most', type=int, default=400, help='validation examples')
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--files', type=int, default=1, help='files of Wikipedia, 8 million tokens each')
    a = p.parse_args()
    if a.quick: a.minutes,a.steps,a.most = .02,2,20
    import torch
    from ulmfit_t5.all import get_task,load_tokenizer,model_path,most,validation_examples
    torch.set_num_threads(a.threads)
    began,rows,a.model,got = time.time(),[],'t5-compact',{}
    tok,train,valid = load_tokenizer(model_path('awd-lstm-fwd')),get_task('stsb').load('train'),most(validation_examples('stsb'), a.most)
    if a.quick: train = most(train, 64)
    base = tfidf(train, valid, SIDES['stsb'])
    with tempfile.TemporaryDirectory() as d:
        c,v = corpora(a, tok, d)
        for name,(head,marking) in WAYS.items():
            res = [(*fit(a, m, train, valid, s),right) for s in range(a.seeds) for m,right in [begin(a, tok, c, v, head, marking, s, f'{d}/{name}{s}')]]
            got[name] = statistics.mean(o[0] for o in res)
            note = f'{a.seeds} seed, ' if a.seeds==1 else f'{a.seeds} seeds, sd {statistics.pstdev(o[0] for o in res):.1f}, '
            note += f'{a.steps} steps, {len(valid)} validation examples' + (f'; {a.minutes:g} minutes of marking, {statistics.mean(o[2] for o in res):.1%} of the tokens right' if marking else '')
            rows.append(line(f'T5 from random weights, STS-B: {name}', got[name], base, (100-base)/(100-got[name]), '', 'higher', 'TF-IDF of both sides + ridge', note))
    write('t5_compare', a, rows, time.time()-began)

if __name__=='__main__': main()
