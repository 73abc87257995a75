"""Memory while a corpus of 1 GB of text is tokenised and then streamed once as language-model batches: ours (tokenize_corpus, memory-mapped
ids, through LMLoader, documents shuffled) against fastai's LMDataLoader, which holds all ids. fastai is measured at 1/20 and 1/10 of the
size, and the line through the two is drawn on.
The corpus is real text, its documents drawn again and again in a new order; it is made as it is read and never stands on disk."""
import json,os,random,shutil,threading,time
from pathlib import Path
from common import line,parser,review_texts,run

SIZE,PARTS,BS,SEQ = 1_000_000_000,(20,10),64,72
def size(a): return 2_000_000 if a.quick else SIZE

def prepare(a, tmp):
    from ulmfit_t5.data.tokenizer import bundled_tokenizer,train_subword
    texts,_,name = review_texts(60 if a.quick else 20_000)
    try: tok = bundled_tokenizer()
    except FileNotFoundError: tok = train_subword(texts[:1500], 600 if a.quick else 10_000, max_chars=1_000_000)
    tok.save(tmp/'subword')
    (tmp/'texts.txt').write_text('\n'.join(json.dumps(t) for t in texts))
    (tmp/'name').write_text(name)

def stream(a, chars, seed=0):
    "Documents with `chars` characters altogether, one line of the file at a time"
    with open(a.tmp/'texts.txt') as f: starts = [0] + [f.tell() for _ in iter(f.readline, '')][:-1]
    rng,n = random.Random(seed),0
    with open(a.tmp/'texts.txt') as f:
        while n<chars:
            f.seek(rng.choice(starts))
            t = json.loads(f.readline())
            n += len(t)
            yield t

def smaps(pid):
    "Megabytes of a process: resident, its own share where pages are shared between processes, and of the resident those that are not pages of files"
    d = dict(l.split(':') for l in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:])
    f = lambda k: int(d[k].split()[0])/1000
    return f('Rss'),f('Pss'),f('Anonymous')

def family():
    "This process and its children"
    me = os.getpid()
    kids = [p.name for p in Path('/proc').iterdir() if p.name.isdigit() and _parent(p)==me]
    return [me,*kids]

def _parent(p):
    try: return int((p/'stat').read_text().rsplit(')', 1)[1].split()[1])
    except (OSError,IndexError): return 0

class Peak(threading.Thread):
    "Samples memory ten times a second while its block runs"
    def __init__(self, every=.1):
        super().__init__(daemon=True)
        self.every,self.on,self.rss,self.tree,self.anon,self.log = every,True,0,0,0,[]
    def sample(self):
        got = []
        for p in family():
            try: got.append(smaps(p))
            except (OSError,KeyError): pass                # it has just ended
        if not got: return
        self.rss,self.tree,self.anon = max(self.rss, got[0][0]),max(self.tree, sum(o[1] for o in got)),max(self.anon, got[0][2])
        self.log.append(got[0][0])
    def run(self):
        while self.on:
            self.sample()
            time.sleep(self.every)
    def __enter__(self):
        self.sample()
        self.start()
        return self
    def __exit__(self, *args):
        self.on = False
        self.join()
        self.sample()
    def drift(self):
        "Growth from the end of the first quarter to the peak after it"
        k = len(self.log)//4
        return max(self.log[k:])-self.log[k]

def ours(a):
    from ulmfit_t5.data.batches import LMLoader
    from ulmfit_t5.data.corpus import tokenize_corpus
    from ulmfit_t5.data.tokenizer import load_tokenizer
    tok = load_tokenizer(a.tmp/'subword')
    base,chars = smaps('self')[0],size(a)
    try:
        s = time.perf_counter()
        with Peak() as tokenising: c = tokenize_corpus(stream(a, chars), tok, a.tmp/'cache', key=f'stream-{chars}', n_workers=max(a.threads, 1), progress=False)
        t_tok = time.perf_counter()-s
        s = time.perf_counter()
        with Peak() as streaming: n = sum(x.numel() for x,_ in LMLoader(c, tok, bs=BS, seq_len=SEQ, shuffle=True))
        t_read = time.perf_counter()-s
        mb = (c.path/'ids.bin').stat().st_size/1e6
    finally: shutil.rmtree(a.tmp/'cache', ignore_errors=True)
    mem = dict(base=base, tok=tokenising.rss, tok_tree=tokenising.tree, read=streaming.rss, anon=streaming.anon, drift=streaming.drift(), ids_mb=mb)
    return mem | dict(chars=chars, tokens=n, tok_rate=chars/t_tok, read_rate=n/t_read, name=(a.tmp/'name').read_text())

def fastai(part):
    "LMDataLoader over ids in memory, as fastai's text datasets have them, and one pass through it"
    def go(a):
        from fastai.text.all import LMDataLoader,TensorText
        from ulmfit_t5.data.tokenizer import load_tokenizer
        tok = load_tokenizer(a.tmp/'subword')
        base,chars = smaps('self')[0],size(a)//part
        with Peak() as p:
            docs = [TensorText(tok.encode(t)) for t in stream(a, chars)]
            s = time.perf_counter()
            n = sum(x.numel() for x,_ in LMDataLoader(docs, bs=BS, seq_len=SEQ, shuffle=False))
            took = time.perf_counter()-s
        return dict(base=base, peak=p.rss, anon=p.anon, chars=chars, tokens=n, read_rate=n/took)
    return go

jobs = dict(ours=ours) | {f'fastai, 1/{p}':fastai(p) for p in PARTS}

def rows(res, a):
    o,(p,q) = res['ours'][0],[res[f'fastai, 1/{k}'][0] for k in PARTS]
    slope = (q['peak']-p['peak'])/(q['chars']-p['chars'])
    whole = q['peak']+slope*(o['chars']-q['chars'])
    gb = f"{o['chars']/1e9:g} GB of {o['name']}"
    drawn = f"fastai: {p['peak']:.0f} MB at {p['chars']/1e6:g} MB and {q['peak']:.0f} MB at {q['chars']/1e6:g} MB of text, extrapolated"
    parts = f"{o['base']:.0f} MB of ours after the imports, {o['anon']:.0f} MB at most not pages of the {o['ids_mb']:.0f} MB file of ids; {drawn}"
    tree = f"main process; {o['tok_tree']:.0f} MB with its worker processes, shared pages counted once; {drawn}"
    peer = ('MB','lower','fastai LMDataLoader, extrapolated')
    out = [line(f'peak resident memory, streaming {gb}', o['read'], whole, whole/o['read'], *peer, parts),
        line('growth of resident memory in the last three quarters of the stream', o['drift'], None, None, 'MB', 'lower'),
        line(f'peak resident memory, tokenising {gb}', o['tok'], whole, whole/o['tok'], *peer, tree)]
    return out + [line('streamed in batches', o['read_rate'], q['read_rate'], o['read_rate']/q['read_rate'], 'tokens/s', peer_name='fastai LMDataLoader'),
        line('tokenised to a file of ids', o['tok_rate'], None, None, 'characters/s', note='text is also put together in that time')]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    if not Path('/proc/self/smaps_rollup').exists(): raise SystemExit('benchmarks/streaming.py reads /proc/PID/smaps_rollup, which only Linux has')
    a.rounds = a.rounds or 1
    run(__file__, a, jobs, rows, prepare)
