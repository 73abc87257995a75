"Schedules: the paper's worked numbers, and what must hold at every length and with every option"
import numpy as np,pytest
from fastai.callback.schedule import combined_cos
from hypothesis import given,settings,strategies as st
from ulmfit_t5.train.schedules import *

SAFE = ('clamped','clr')
lengths,shares = st.integers(1, 5000),st.floats(0, 1)
safe_stlr = st.builds(lambda m,c,r: schedule('stlr', mode=m, cut_frac=c, ratio=r), st.sampled_from(SAFE), st.floats(.01, .9), st.floats(1, 1000))
cycles = st.builds(lambda p,d,f: schedule('one_cycle', pct_start=p, div=d, div_final=f), st.floats(0, 1), st.floats(1, 100), st.floats(1, 1e6))
ends = st.builds(lambda n,e,w: schedule(n, end=e, warmup=w), st.sampled_from(('cosine','linear')), shares, st.floats(0, .9))
counted = st.builds(lambda k,r: schedule('inv_sqrt', k=k, rise=r), st.integers(1, 20_000), st.booleans())
any_sched = st.one_of(safe_stlr, cycles, ends, counted, st.builds(lambda w: schedule('constant', warmup=w), st.floats(0, .9)))

def literal(t, T, cut_frac=.1, ratio=32, top=.01):
    "The paper's three lines, written once more and independently"
    cut = T//10
    p = t/cut if t<cut else 1-(t-cut)/(cut*(1/cut_frac-1))
    return top*(1+p*(ratio-1))/ratio

WORKED = {0:.0003125, 1:.00128125, 5:.00515625, 9:.00903125, 10:.01, 11:.0098923611, 50:.0056944444, 55:.00515625, 99:.0004201389, 100:.0003125}

@pytest.mark.parametrize('mode', ['paper',*SAFE])
@pytest.mark.parametrize('t', WORKED)
def test_worked_numbers(t, mode): assert .01*stlr(t/100, 100, mode=mode)==pytest.approx(WORKED[t], abs=1e-10)

@pytest.mark.parametrize('t,v', [(0,.0003125),(161,.01),(1617,.0002657),(1618,.000259)])
def test_1618_updates(t, v): assert .01*stlr(t/1618, 1618, mode='paper')==pytest.approx(v, abs=5e-8)

@pytest.mark.parametrize('T,v', [(105,-.000118),(15,-.00399)])
def test_literal_formula_goes_below_zero(T, v):
    assert .01*stlr((T-1)/T, T, mode='paper')==pytest.approx(v, abs=5e-6)
    for m in SAFE: assert .01*stlr((T-1)/T, T, mode=m)>=.0003125-1e-12

@given(st.integers(10, 5000), shares)
def test_paper_mode_is_the_formula(T, x):
    t = round(x*T)
    assert .01*stlr(t/T, T, mode='paper')==pytest.approx(literal(t, T), abs=1e-9)

@given(st.integers(10, 5000))
def test_clamped_is_the_formula_while_that_is_sane(T):
    p,c = [schedule('stlr', mode=m).steps(T) for m in ('paper','clamped')]
    assert np.allclose(c, np.maximum(p, 1/32), atol=1e-9)

@pytest.mark.parametrize('T', range(1, 10))
def test_below_ten_updates(T):
    with pytest.raises(ValueError, match="use mode='clamped'"): stlr(0, T, mode='paper')
    for m in SAFE:
        r = schedule('stlr', mode=m).steps(T)
        assert np.isfinite(r).all() and r.max()==1 and stlr(1, T, mode=m)==pytest.approx(1/32)

def test_old_circular_rate():
    "As the older fastai has it: counted in updates, turning at nb//cut_div"
    for nb,div,cut_div in ((300,32,10),(125,8,3),(777,8,8)):
        cut = nb//cut_div
        for it in range(nb+1):
            p = 1-(it-cut)/(nb-cut) if it>cut else it/cut
            assert stlr(it/nb, nb, cut_frac=1/cut_div, ratio=div, mode='clr')==pytest.approx((1+p*(div-1))/div, abs=1e-9)
    for it,v in {0:.000125, 50:.003712963, 100:.00299537, 200:.00156019, 299:.00013935}.items():
        assert .004*stlr(it/300, 300, mode='clr')==pytest.approx(v, abs=1e-8)

ROWS = {0:(4e-4,.95), .125:(.0052,.9), .25:(.01,.85), .5:(.007500025,.875), .625:(.00500005,.9), 1.:(1e-7,.95)}

@pytest.mark.parametrize('p', ROWS)
def test_one_cycle_rows(p): assert (.01*one_cycle(p),momentum(p))==pytest.approx(ROWS[p], rel=1e-7)

@given(shares, st.floats(.05, .95))
def test_one_cycle_is_fastai(p, start):
    f = combined_cos(start, 1/25, 1., 1e-5)
    if abs(p-start)>1e-5: assert one_cycle(p, pct_start=start)==pytest.approx(f(p), abs=1e-4)

@given(lengths)
def test_inverse_square_root_is_t5(T):
    n = np.arange(T)
    assert np.allclose(.01*schedule('inv_sqrt').steps(T), 1/np.sqrt(np.maximum(n, 10_000)))
    assert np.allclose(schedule('inv_sqrt', k=50, rise=True).steps(T), np.minimum(n/50, np.sqrt(50/np.maximum(n, 1))))

@settings(max_examples=300, deadline=None)
@given(any_sched, lengths)
def test_never_outside_zero_and_peak(s, T):
    r = s(np.arange(T+1)/T, T)
    assert np.isfinite(r).all() and r.min()>=-1e-12 and r.max()<=1+1e-9
    assert s.steps(T).shape==(T,) and np.array_equal(s.steps(T), r[:T])

def test_the_default_triangle_at_every_length():
    for T in range(1, 5001):
        for m in SAFE:
            r = stlr(np.arange(T+1)/T, T, mode=m)
            assert 1/32-1e-12<=r.min() and abs(r.max()-1)<1e-12 and abs(r[-1]-1/32)<1e-12, (T,m)
            top = r.argmax()
            assert (np.diff(r[:top+1])>0).all() and (np.diff(r[top:])<=1e-12).all(), (T,m)

@given(st.floats(.01, .9), st.floats(1, 1000), lengths, st.sampled_from(SAFE))
def test_triangle_ends_where_it_says(c, ratio, T, m): assert stlr(1, T, c, ratio, m)==pytest.approx(1/ratio)

@given(shares, st.floats(1, 1e6), st.floats(0, .9), lengths)
def test_others_end_where_they_say(e, f, w, T):
    for n in ('cosine','linear'): assert schedule(n, end=e, warmup=w)(1, T)==pytest.approx(e, abs=1e-9)
    assert schedule('one_cycle', div_final=f)(1, T)==pytest.approx(1/f) and schedule('constant', warmup=w)(1)==1

@settings(max_examples=200, deadline=None)
@given(st.one_of(ends, st.just(schedule('stlr')), st.just(schedule('one_cycle')), st.just(schedule('inv_sqrt', k=100, rise=True))), st.integers(100, 5000))
def test_no_jumps(s, T):
    x = np.linspace(0, 1, 20_001)
    steep = 5e-5*max(12, 1/(s.warmup or 1)+10/(1-s.warmup), T/100+1) # slopes: 1/cut, a quarter cycle, the warm-up, k updates
    assert np.abs(np.diff(s(x, T))).max()<=steep

@given(shares)
def test_numbers_and_arrays_agree(p):
    for n in SCHEDULES: assert float(schedule(n)(p, 777))==schedule(n)(np.array([p,p]), 777)[1]

@pytest.mark.parametrize('f,says', [(lambda: schedule('triangle'), 'choose one of'), (lambda: schedule('stlr', slope=1), 'do not fit'),
    (lambda: stlr(.5, cut_frac=0), 'cut_frac is 0'), (lambda: stlr(.5, ratio=.5), 'ratio is 0.5'), (lambda: stlr(.5, mode='x'), "mode is 'x'"),
    (lambda: schedule('linear', warmup=1), 'warmup is 1'), (lambda: inv_sqrt(.5), 'needs n_steps'), (lambda: momentum(.5, (1,2)), 'one number, or three'),
    (lambda: cosine(0, end=2), 'end is 2')])
def test_errors_are_sentences(f, says):
    with pytest.raises(ValueError, match=says): f()

def test_a_new_schedule_is_one_function():
    @register_schedule
    def square(pct, n_steps=None, power=2): return (1-np.asarray(pct, float))**power
    try: assert schedule('square', power=3)(.5)==.125 and 'square' in SCHEDULES
    finally: SCHEDULES.pop('square')

def test_to_sched_is_plain_numbers_for_every_group():
    f = to_sched(schedule('linear'), np.array([.1,.2]))
    assert f(.5)==[.05,.1] and all(type(o) is float for o in f(.5)) and to_sched('constant', .3)(.9)==[.3]
