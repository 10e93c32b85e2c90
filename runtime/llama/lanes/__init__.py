"""Lanes on stock llama.cpp: the bank of weights, and the graph whose LoRA nodes are rewritten to read it.

What backends do to a graph before the eval callback sees it, or remember of it afterwards, and what keeps that from
doing harm. Lines are those of llama.cpp in llama-cpp-python 0.3.36, files below ``ggml/src``.

- The **scheduler assigns** each node to a backend by the operation that it has at that time (ggml-backend.cpp:894).
  BLAS takes ``MUL_MAT`` of 32 and more in each dimension, and ends the process at ``MUL_MAT_ID`` (ggml-blas.cpp,
  supports_op). So the template has rank 1, which is too small for BLAS, and `backends` asks ``supports_op`` and
  ``supports_buft`` of the backend that each rewritten node was given to; a "no" fails the batch before the node is
  computed.
- The **scheduler computes in splits**, and asks the callback about the nodes of a split only when it comes to that
  split (ggml-backend.cpp:1820). So each node is rewritten when it is first met, not when its whole group is known.
- The **scheduler copies** a tensor that a backend cannot read, and names the copy ``DEVICE#name#0``
  (ggml-backend.cpp:1381). So nodes are known by the name of their source, and the bank is allocated where that source
  is, copy or not.
- **Metal and Vulkan reorder** nodes that do not wait for each other, before memory is allocated
  (ggml-metal-common.cpp, ggml_graph_optimize; ggml-vulkan.cpp, ggml_vk_graph_optimize). So every module of a layer
  has memory of its own for its results, and a result that would be overwritten before it is read fails the batch.
- **CUDA and RPC keep a graph** by its ``uid``, with what its nodes' sources pointed at (ggml-cuda.cu:2598,
  ggml-rpc.cpp:1044). A graph computed under an armed callback has uid 0, and all of it is compared or sent. So
  another lane takes effect without a walk of the callback only where the processor computes all nodes.
- **Metal keeps scratch** behind the result of ``MUL_MAT_ID`` (ggml-metal.cpp, buffer_type_get_alloc_size). So ``b``
  has memory of the bank wherever the backend's ``alloc_size`` is larger than the result.
- **CUDA, Metal and Vulkan fuse** neighbouring nodes by their operations when they compute, which is after the
  rewriting. ``s`` stays between ``b`` and ``out`` as a node that does nothing, and counts of users stay true. Known
  loss: such nodes keep CUDA from fusing gate, up and GLU in a batch without adapters.

The self-check (`runtime.engine.start.selfcheck`) shows whether all of this still holds on the devices at hand; it is
what allows another version of llama.cpp.
"""
