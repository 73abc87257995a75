"""Bytes of the picture of a T5's attention, ours with the few largest weights of each row against bertviz's full matrices, compact T5, inputs of up
to 512 tokens and an answer of 64. bertviz's picture is also nothing without its CDN (require.js, jQuery, d3); where it is not installed its payload is counted
as it writes it: one JSON number for each weight. Its users report that T5 crashes a notebook at more than a few sentences (its issue 74) and that nothing loads any
more towards 512 tokens (its issue 82, where its author answers that it is meant for short texts). `--load` measures it: both pages are opened in headless Chromium
at growing lengths until bertviz's is not drawn within a minute, and then how long it takes if one waits; drawn is a page whose own script is done and of which a
picture of the window could be taken."""
import json,re,shutil,tempfile,threading,time
from importlib.util import find_spec
from pathlib import Path
from common import line,parser,write

LENGTHS,MOST,WAIT = (32,64,128,256,384,512,768),8,5 # tokens; GB that a page may take; how many times the limit one waits at most
SCRIPTS = {'require.js':'require.min.js','jQuery':'jquery.min.js','d3':'d3.min.js'} # what bertviz's page asks its CDN for
DRAWN = dict(ours='.u5-ctl', bertviz='#vis svg > g > rect') # what the script of a page shows last
FLAGS = ['--no-sandbox','--disable-gpu','--disable-dev-shm-usage','--disable-background-networking','--no-first-run',
    '--disable-component-update','--disable-sync']

def texts(tok, n, m, seed=0):
    "Random ids of `n` input and `m` answer tokens, no special ones"
    import torch
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(300, len(tok), (k,), generator=g) for k in (n,m)]

def our_view(model, tok, x, y, top):
    from ulmfit_t5.interpret.attention import AttentionView,attention_of
    return AttentionView(attention_of(model, x, y, top), tok.pieces(x), tok.pieces(y))

def ours(model, tok, x, y, top):
    t = time.perf_counter()
    v = our_view(model, tok, x, y, top)
    size = len(v._repr_html_().encode())
    return size,time.perf_counter()-t,v.sides['encoder'].kept

def matrices(model, x, y):
    "All weights: a list of layers, (1 h q k) each"
    import torch
    from ulmfit_t5.interpret.attention import attention_of
    return {k:[torch.as_tensor(l)[None] for l in v.dense()] for k,v in attention_of(model, x, y, None).items()}

def their_page(full, tok, x, y):
    from bertviz import head_view
    return head_view(encoder_attention=full['encoder'], decoder_attention=full['decoder'], cross_attention=full['cross'],
        encoder_tokens=tok.pieces(x), decoder_tokens=tok.pieces(y), html_action='return').data

def bertviz(model, tok, x, y):
    "Bytes, seconds and who counted: bertviz itself, or its format written here"
    full = matrices(model, x, y)
    t = time.perf_counter()
    try: page = their_page(full, tok, x, y)
    except ImportError:
        size = sum(len(json.dumps(l.tolist())) for v in full.values() for l in v)
        return size,time.perf_counter()-t,'counted as bertviz writes it'
    return len(page.encode()),time.perf_counter()-t,'bertviz head_view'

class Memory(threading.Thread):
    "Within it, the most gigabytes that one process started from here has held; one that holds more than `MOST` is ended"
    def __init__(self):
        super().__init__(daemon=True)
        self.peak,self.over,self.done = 0.,False,threading.Event()
    def __enter__(self):
        self.start()
        return self
    def __exit__(self, *_):
        self.done.set()
        self.join()
    def run(self):
        import psutil
        while not self.done.wait(.1):
            for p in psutil.Process().children(recursive=True):
                try: self.see(p)
                except psutil.Error: pass # it has ended
    def see(self, p):
        gb = p.memory_info().rss/2**30
        self.peak = max(self.peak, gb)
        if gb<=MOST: return
        self.over = True
        p.kill()

def serve(route, folder):
    "Answer a page that asks for a script of `SCRIPTS`; nothing else is to be had"
    name = route.request.url.split('/')[-1]
    if name in SCRIPTS.values(): route.fulfill(path=folder/name, content_type='text/javascript')
    else: route.abort()

def draw(page, url, seen, limit):
    "Seconds until `seen` is shown and the window could be pictured; Playwright raises TimeoutError after `limit`"
    t = time.perf_counter()
    took = lambda: time.perf_counter()-t
    left = lambda: max(1000*(limit-took()), 1)
    page.goto(url, wait_until='commit', timeout=left())
    page.wait_for_selector(seen, timeout=left())
    page.screenshot(timeout=left())
    return took()

def load(html, who, a):
    "Open a page in a fresh Chromium: seconds until it is drawn, or None; gigabytes at most; what went wrong"
    from playwright.sync_api import Error,TimeoutError,sync_playwright
    found,took,why,errors = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None),None,'',[]
    with tempfile.TemporaryDirectory() as d,sync_playwright() as pw,Memory() as mem:
        (fn := Path(d)/'page.html').write_text('<!doctype html><meta charset="utf-8">'+html, encoding='utf8')
        with pw.chromium.launch(executable_path=found, args=FLAGS) as b:
            page = b.new_page()
            page.route(re.compile('^https?:'), lambda o: serve(o, a.scripts))
            page.on('pageerror', lambda e: errors.append(e.message[:100]))
            try: took = draw(page, fn.as_uri(), DRAWN[who], a.limit*WAIT)
            except TimeoutError: why = f'nothing is drawn within {a.limit*WAIT} s'
            except Error as e: why = f'the page takes more than {MOST} GB' if mem.over else str(e).split('\n')[0]
    if took and took>a.limit: why = f'drawn only after {took:.0f} s'
    return took,mem.peak,'; '.join([why]*bool(why)+errors[:1])

def both(model, tok, n, a, fails):
    "A row of both pages at a length, of ours alone where bertviz has failed before; and what failed now"
    x,y = texts(tok, n, 8 if a.quick else 64)
    took,gb,why = load(our_view(model, tok, x, y, a.top)._repr_html_(), 'ours', a)
    if took is None or took>a.limit: raise SystemExit(f'our own page of {n} tokens: {why}')
    slow,much,why = (None,0,'not tried any more') if fails else load(their_page(matrices(model, x, y), tok, x, y), 'bertviz', a)
    note = f'memory of the page {gb:.1f} GB' + (f', of bertviz {much:.1f} GB' if much else '') + (f'; bertviz: {why}' if why else '')
    row = line(f'time until Chromium has drawn the picture of {n} tokens', took, slow, slow and slow/took, 's', 'lower', 'bertviz head_view', note)
    return row,'' if slow and slow<=a.limit else f'{n} tokens: {why}, {much:.1f} GB'

def release(path):
    "Version that a script names in its first lines"
    m = re.search(r'\d+\.\d+\.\d+', path.read_text(encoding='utf8')[:400])
    return m[0] if m else ''

def loaded(model, tok, a):
    "Rows of both pages opened at growing lengths, bertviz's up to its first failure, and of the longest that is drawn"
    rows,fails,them,lengths = [],'',0,(16,32) if a.quick else LENGTHS
    for n in lengths:
        row,failed = both(model, tok, n, a, fails)
        rows.append(row)
        fails = fails or failed
        if not fails: them = n
    said = f'bertviz at {fails}' if fails else 'bertviz draws all that were tried, and its failure is above'
    used = ', '.join(f'{k} {release(a.scripts/v)}' for k,v in SCRIPTS.items())
    note = f"{said}; ours draws all that were tried, {', '.join(map(str, lengths))}; bertviz's scripts from this machine: {used}"
    what = f'longest input whose picture Chromium draws within {a.limit} s'
    return [*rows,line(what, lengths[-1], them or None, them and lengths[-1]/them or None, 'tokens', 'higher', 'bertviz head_view', note)]

def check_load(p, a):
    "What `--load` needs, said at once where it is not there"
    missing = [o for o in SCRIPTS.values() if not (a.scripts and (a.scripts/o).exists())]
    ask = f"give with --scripts a folder that holds {', '.join(missing)} (of the packages requirejs, jquery 2, d3 5)"
    if missing: p.error(f"--load opens bertviz's page without the network: {ask}")
    absent = [o for o in ('bertviz','playwright','psutil') if find_spec(o) is None]
    if absent: p.error(f"--load needs {', '.join(absent)}, which is not installed here")

def main():
    p = parser(__doc__)
    p.add_argument('--top', type=int, default=8, help='weights of each row that ours keeps')
    p.add_argument('--load', action='store_true', help='open both pages in headless Chromium at growing lengths; minutes')
    p.add_argument('--scripts', type=Path, help=f"with --load: folder of {', '.join(SCRIPTS.values())}, which bertviz's page asks its CDN for")
    p.add_argument('--limit', type=int, default=60, help='with --load: seconds in which a page must be drawn')
    a = p.parse_args()
    if a.load: check_load(p, a)
    import torch
    from ulmfit_t5.core import seed_everything
    from ulmfit_t5.data.tokenizer import bundled_tokenizer
    from ulmfit_t5.models.t5 import T5
    from ulmfit_t5.writer import vocab_config
    torch.set_num_threads(a.threads)
    seed_everything(0)
    began,rows,tok = time.time(),[],bundled_tokenizer()
    model = T5(vocab_config(tok, 'compact')).eval()
    for n in (16,64) if a.quick else (64,128,256,512):
        x,y = texts(tok, n, 8 if a.quick else 64)
        size,took,kept = ours(model, tok, x, y, a.top)
        theirs,slow,who = bertviz(model, tok, x, y)
        note = f'{a.top} weights of a row, {kept:.0%} of the weight of random weights; an answer of {len(y)} tokens' + ('; at this length its users see nothing load (bertviz issue 82)' if n==512 else '')
        rows.append(line(f'picture of the attention to {n} tokens', size, theirs, theirs/size, 'bytes', 'lower', who, note))
    rows.append(line(f'time to make the picture of {n} tokens', took, slow, slow/took, 's', 'lower', who, 'ours with the pass of the model, the peer without'))
    if a.load: rows += loaded(model, tok, a)
    write('attention_view', a, rows, time.time()-began)

if __name__=='__main__': main()
