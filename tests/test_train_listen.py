"A click while a cell awaits a training, as front ends send it that have one channel for all (VS Code, Colab): heard at once, on the installed kernel and on those that ULMFIT_T5_KERNELS names"
import os,queue,re,sys,time
import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from conftest import root

SETUP = """
import time,torch,ipykernel,ipywidgets as w
from torch import nn
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from ulmfit_t5.train.steer import *
from ulmfit_t5.train.steered import *
class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(.02)
        return super().forward(x)
x = torch.randn(64, 3)
dl = DataLoader(list(zip(x, x.sum(1, keepdim=True))), bs=8)
learn = Learner(DataLoaders(dl, dl), Slow(3, 1), nn.MSELoss(), splitter=lambda m: [[m.weight],[m.bias]], lr=.01)
learn.logger = lambda *_: None
learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])
s,b,hits = steering(learn),w.Button(),[]
b.on_click(lambda _: hits.append((time.time(),s.send('freeze', group=0))))
print('model', b.model_id, ipykernel.__version__)
"""
TRAIN = "began = s.steps_done\nprint('go', flush=True)\nawait learn.steer('fit', 40)\nprint('after')"
LATER = "print('later', s.steps_done)"
TELL = "print('told', hits[0][0], hits[0][1].step, s.steps_done, learn.model.weight.requires_grad)"
KERNELS = [sys.executable,*os.environ.get('ULMFIT_T5_KERNELS', '').split()]

class Client:
    "A front end of the plainest kind"
    def __init__(self, python):
        self.km = KernelManager()
        self.km._kernel_spec = KernelSpec(argv=[python,'-m','ipykernel_launcher','-f','{connection_file}'], display_name='', language='python')
        self.km.start_kernel(cwd=root, env=os.environ|{'PYTHONPATH':str(root), 'OMP_NUM_THREADS':'1'})
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=300)
        self.text = {}
    def until(self, f, secs=300):
        "Take messages in until `f()`"
        end = time.monotonic()+secs
        while not f():
            assert time.monotonic()<end, self.text
            try: m = self.kc.get_iopub_msg(timeout=.5)
            except queue.Empty: continue
            c,mid = m['content'],m['parent_header'].get('msg_id')
            assert m['msg_type']!='error', '\n'.join(c['traceback'])
            if m['msg_type']=='stream' and c['name']=='stdout': self.text[mid] = self.text.get(mid, '')+c['text']
    def run(self, code): return self.kc.execute(code)
    def said(self, mid, word): return lambda: word in self.text.get(mid, '')
    def click(self, model): self.kc.shell_channel.send(self.kc.session.msg('comm_msg', dict(comm_id=model, data=dict(method='custom', content=dict(event='click')))))

@pytest.fixture(params=KERNELS)
def client(request):
    c = Client(request.param)
    yield c
    c.kc.stop_channels()
    c.km.shutdown_kernel(now=True)

def test_a_click_is_heard_while_a_cell_awaits(client):
    c,words = client,lambda mid: c.text[mid].split()
    first = c.run(SETUP)
    c.until(c.said(first, 'model'))
    train = c.run(TRAIN)
    c.until(c.said(train, 'go'))
    later = c.run(LATER) # waits for its turn
    time.sleep(1)
    at = time.time()
    c.click(words(first)[1])
    c.until(c.said(later, 'later'))
    told = c.run(TELL)
    c.until(c.said(told, 'told'))
    _,heard,step,steps,trains = words(told)
    print(f'ipykernel {words(first)[2]}: heard after {float(heard)-at:.3f} s, before step {step} of {steps}')
    assert int(step)<int(steps)==320==int(words(later)[1]) and words(train)[-1]=='after', 'the click waited for the end of the cell'
    assert float(heard)-at<5 and re.fullmatch('True|False', trains)
