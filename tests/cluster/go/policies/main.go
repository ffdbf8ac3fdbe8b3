// policies enforces NetworkPolicies on the node, by the judgement of kube-network-policies: the kernel asks about the
// first packet of each connection, and drops those that nobody allows or answers for.
//
// Three things are not as in that project's own program. Rules of iptables hand the packets over (node.py writes them),
// as its own need a part of nftables, NFT_QUEUE, that not every kernel has. They also hand over what goes to the node
// itself, where the API server and the registry are. And whose an address is says what CNI has written down: it is there
// before a container starts, and gone when another pod may get the address, while the API server learns of both later.
//
//	policies -kubeconfig=FILE -node=NAME -cni=FOLDER -network=NAME -dns=ADDRESS
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// quiet is an informer whose events nobody hears: at each of them the controller would write its rules of nftables.
type quiet struct{ cache.SharedIndexInformer }

func (quiet) AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return nil, nil
}

type policies struct {
	networkinginformers.NetworkPolicyInformer
}

func (p policies) Informer() cache.SharedIndexInformer {
	return quiet{p.NetworkPolicyInformer.Informer()}
}

type pods struct {
	coreinformers.PodInformer
	results results
}

func (p pods) Informer() cache.SharedIndexInformer {
	return indexed{quiet{p.PodInformer.Informer()}, p.results}
}

type indexed struct {
	quiet
	results results
}

func (i indexed) GetIndexer() cache.Indexer {
	return indexer{i.quiet.GetIndexer(), i.results}
}

type indexer struct {
	cache.Indexer
	results results
}

// ByIndex returns the pod that has an address now; the controller asks by no other index.
func (i indexer) ByIndex(_, address string) ([]any, error) {
	if address == i.results.dns.Status.PodIP {
		return []any{i.results.dns}, nil
	}
	key := i.results.pod(address)
	if key == "" {
		return nil, nil
	}
	// The kubelet has seen the pod; the informer will at once.
	for range 100 {
		if pod, ok, _ := i.GetByKey(key); ok {
			return []any{pod}, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s has the address %s, and is unknown", key, address)
}

// results is what CNI keeps of one network, and the pod that the node's DNS stands for, which is a process.
type results struct {
	folder, network string
	dns             *corev1.Pod
}

// pod returns namespace and name of the pod that has an address, or nothing.
func (r results) pod(address string) string {
	taken, err := os.ReadFile(filepath.Join(r.folder, "networks", r.network, address)) // by host-local
	if err != nil {
		return ""
	}
	container, link, _ := strings.Cut(strings.TrimSpace(string(taken)), "\r\n")
	text, err := os.ReadFile(filepath.Join(r.folder, "results", fmt.Sprintf("%s-%s-%s", r.network, container, link)))
	if err != nil {
		return ""
	}
	var kept struct{ CniArgs [][2]string }
	if err := json.Unmarshal(text, &kept); err != nil {
		return ""
	}
	of := map[string]string{}
	for _, pair := range kept.CniArgs {
		of[pair[0]] = pair[1]
	}
	return of["K8S_POD_NAMESPACE"] + "/" + of["K8S_POD_NAME"]
}

func main() {
	r := results{dns: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "dns"}}}
	kubeconfig := flag.String("kubeconfig", "", "file")
	node := flag.String("node", "", "whose pods these are")
	flag.StringVar(&r.folder, "cni", "", "where CNI keeps its results")
	flag.StringVar(&r.network, "network", "", "name of the pods' network")
	flag.StringVar(&r.dns.Status.PodIP, "dns", "", "address of the node's DNS")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		panic(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	core := factory.Core().V1()
	controller, err := networkpolicy.NewController(
		client,
		policies{factory.Networking().V1().NetworkPolicies()},
		core.Namespaces(),
		pods{core.Pods(), r},
		nil, nil, nil, nil, // what AdminNetworkPolicies need
		networkpolicy.Config{NodeName: *node},
	)
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	factory.Start(ctx.Done())
	panic(controller.Run(ctx))
}
