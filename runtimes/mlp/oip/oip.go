// Package oip holds the messages and service of the Open Inference Protocol v2
// over gRPC, generated from open_inference.proto.
//
// The mlp runtime's server and its tests import it; it holds no behaviour.
package oip

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative open_inference.proto
