// Metal's own order of nodes, on the processor: makes a scheduler's backends reorder their graphs as Metal does.
//
// Built together with ggml/src/ggml-metal/ggml-metal-common.cpp of llama.cpp, which is plain C++. What it needs of Metal is
// below: no node is fused, which leaves the reordering the largest freedom.
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <vector>

extern "C" void ggml_graph_optimize(ggml_cgraph * graph);

extern "C" int ggml_metal_fusion_max(const ggml_cgraph *, int) { return 1; }

namespace {
long n_reordered = 0;

void optimize(ggml_backend_t, ggml_cgraph * graph, ggml_backend_graph_optimize_params *) {
    const std::vector<ggml_tensor *> before(graph->nodes, graph->nodes + graph->n_nodes);
    ggml_graph_optimize(graph);
    n_reordered += !std::equal(before.begin(), before.end(), graph->nodes);
}
} // namespace

extern "C" {
// Every graph that a backend of `scheduler` computes from now on is reordered.
void order_as_metal(ggml_backend_sched_t scheduler) {
    for (int i = 0; i < ggml_backend_sched_get_n_backends(scheduler); ++i) {
        ggml_backend_sched_get_backend(scheduler, i)->iface.graph_optimize = optimize;
    }
}
// Graphs whose order has changed.
long graphs_reordered() { return n_reordered; }
}
