"""Import of networks that were made elsewhere.

::

    source (ONNX file, torch program, torchvision, timm)
      -> ONNX graph with one input `image` and any batch size      (onnx_source, torch_source)
      -> where its logits, its last feature map and its head are     (anatomy)
      -> a graph with `logits`, `embedding`, `feature_map`, and for a head that is not one linear layer on the average
         also `logit_gradients`                                     (assembly, gradients)
      -> checked against the source, torch's autograd and finite differences   (verification)

Only this package imports torch, and only inside functions that one command calls: no process of the gateway loads it.
"""
