# The Worker of page.js on workerd, its AI binding answered by gemlane.
#
#   workerd serve config.capnp                                                  gemlane on 127.0.0.1:8080, the Worker on :8787
#   workerd serve config.capnp --external-addr gemlane=192.168.1.7:8080         gemlane elsewhere
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "page", worker = .page),
    # A gemlane that asks for a token gets it here: [(name = "Authorization", value = "Bearer ...")].
    (name = "gemlane", external = (address = "127.0.0.1:8080", http = (injectRequestHeaders = []))),
    (name = "internet", network = (allow = [])), # this Worker fetches from nowhere; allow = ["public"] opens the world
  ],
  sockets = [(name = "http", address = "127.0.0.1:8787", http = (), service = "page")],
);

const page :Workerd.Worker = (
  modules = [(name = "page.js", esModule = embed "page.js")],
  compatibilityDate = "2026-11-01",
  bindings = [
    # workerd carries the class behind env.AI itself; it sends POST /run?version=3 to whatever service is named here.
    (name = "AI", wrapped = (
      moduleName = "cloudflare-internal:ai-api",
      innerBindings = [(name = "fetcher", service = "gemlane")],
    )),
  ],
);
