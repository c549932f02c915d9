// govmomi's vCenter simulator with TLS: a second opinion on our SOAP that nobody here wrote.
//
//	vcsim VMS      prints the address once it listens, and ends when its standard input does
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	model := simulator.VPX()
	vms, err := strconv.Atoi(os.Args[1])
	if err == nil {
		model.Machine = vms
		model.Folder = 1
		err = model.Create()
	}
	if err != nil {
		panic(err)
	}
	model.Service.TLS = new(tls.Config)
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword("backup", "se&<cret>")}
	server := model.Service.NewServer()
	defer server.Close()
	fmt.Println(server.URL.Host)
	_, _ = io.Copy(io.Discard, os.Stdin)
}
