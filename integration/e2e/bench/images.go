package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"silk.invalid/integration/e2e/internal/image"
)

// subject is an image that is measured: a recipe under hack/images, as built.
type subject struct {
	name   string
	layout string
	bundle image.Bundle
	bytes  int64 // compressed, layers only
}

// The images of a full run, each for something of its own that its recipe tells.
var recipes = []string{"python-service", "node-service", "jvm", "database", "ml", "layers", "random", "zstd"}

// NAME-hello is a recipe's image with a start that does next to nothing, as HelloBench has them: its runtime comes up, with one library at most,
// and says its line.
const hello = "-hello"

var hellos = map[string][]string{
	"python-service": {"python3", "-uc", "import flask, numpy, signal; print('ready'); signal.pause()"},
	"node-service":   {"node", "-e", "require('express')().listen(0, '127.0.0.1', () => console.log('ready'))"},
	"jvm":            {"sh", "-c", "java -version && echo ready && exec sleep infinity"},
	"ml":             {"python3", "-uc", "import numpy, signal; print('ready'); signal.pause()"},
}

// buildImages builds what is not in the cache.
func buildImages(builder string, names []string) (subjects []subject, err error) {
	build := exec.Command(builder)
	for _, name := range names {
		build.Args = append(build.Args, strings.TrimSuffix(name, hello))
	}
	build.Stderr = os.Stderr
	out, err := build.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", builder, err)
	}
	layouts := strings.Fields(string(out))
	if len(layouts) != len(names) {
		return nil, fmt.Errorf("%s printed %d layouts for %d images", builder, len(layouts), len(names))
	}
	for i, name := range names {
		s := subject{name: name, layout: layouts[i]}
		if s.bundle, err = image.ReadLayout(s.layout); err != nil {
			return nil, err
		}
		if recipe, light := strings.CutSuffix(name, hello); light {
			if hellos[recipe] == nil {
				return nil, fmt.Errorf("%s has no start of its own: see hack/bench's images.go", name)
			}
			if s.bundle, err = s.bundle.WithCommand(hellos[recipe]); err != nil {
				return nil, err
			}
		}
		for _, size := range s.layers() {
			s.bytes += size
		}
		subjects = append(subjects, s)
	}
	return subjects, nil
}

// layers are the sizes of the image's compressed layers, from the base up.
func (s subject) layers() (sizes []int64) {
	var manifest struct{ Layers []struct{ Size int64 } }
	json.Unmarshal(s.bundle.Root.Body, &manifest) // ReadLayout has read it
	for _, layer := range manifest.Layers {
		sizes = append(sizes, layer.Size)
	}
	return sizes
}
