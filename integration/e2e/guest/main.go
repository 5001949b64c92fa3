// Command guest is the program inside test containers: a static binary for images that hold nothing else.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	command := "pause"
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	switch command {
	case "pause":
		wait()
	case "hello":
		fmt.Println("ready")
		wait()
	case "reread":
		reread(os.Args[2])
	case "sum":
		sum(os.Args[2])
	default:
		fmt.Fprintf(os.Stderr, "guest knows no %q\n", command)
		os.Exit(2)
	}
}

func wait() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

// sum holds no more of the file than a buffer: twenty containers do this at once.
func sum(path string) {
	hash := sha256.New()
	file, err := os.Open(path)
	if err == nil {
		_, err = io.Copy(hash, file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("sha256:%x", hash.Sum(nil))
}

// reread opens, reads and stats a file over and over until something is wrong, and says "ready" after the first time.
func reread(path string) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	for first := true; ; first = false {
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			fmt.Printf("failed: %v, %d bytes\n", err, len(data))
			os.Exit(1)
		}
		if _, err := os.ReadDir("/"); err != nil {
			fmt.Printf("failed: %v\n", err)
			os.Exit(1)
		}
		if first {
			fmt.Println("ready")
		}
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}
