"""Two threads at once: maps are those of one, and PyTorch is left as it was."""

import threading

import torch
import torch.nn.functional as F

import attncompare as ac


def test_two_threads_explain_two_models_and_leave_pytorch_as_it_was(fresh, pictures):
    models = [fresh("vit_torchvision"), fresh("vit_torchvision")]
    images = pictures(models[0])
    names = ["attention_rollout", "gradient_rollout"]
    expected = ac.explain_together(models[0], names, images, 1)
    before = F.scaled_dot_product_attention, F.softmax, torch.backends.mha.get_fastpath_enabled()
    raised, differing = [], []

    def work(model):
        try:
            for _ in range(15):
                shown = ac.explain_together(model, names, images, 1)
                differing.extend(n for n in names if not torch.equal(shown[n].values, expected[n].values))
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    assert differing == []
    assert (F.scaled_dot_product_attention, F.softmax, torch.backends.mha.get_fastpath_enabled()) == before


def test_a_plain_pass_in_another_thread_is_not_diverted(fresh, pictures):
    explained, plain = fresh("vit_torchvision"), fresh("vit_torchvision")
    images, done, wrong = pictures(explained), threading.Event(), []
    with torch.no_grad():
        expected = plain.forward(images)

    def passes():
        while not done.is_set():
            with torch.no_grad():
                wrong.extend([1] if not torch.allclose(plain.forward(images), expected, atol=1e-5) else [])

    beside = threading.Thread(target=passes)
    beside.start()
    try:
        for _ in range(10):
            ac.explain_together(explained, ["gradient_rollout"], images, 1)
    finally:
        done.set()
        beside.join()
    assert wrong == []
