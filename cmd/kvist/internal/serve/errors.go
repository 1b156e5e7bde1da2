// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

// invalid is the type of errors of the request.
const invalid = "invalid_request_error"

// apiError is an error as OpenAI's API gives it.
type apiError struct {
	status  int
	Type    string
	Param   string
	Code    string
	Message string
}

func (e *apiError) Error() string { return e.Message }

// unsupported refuses what would change the answer and is not done here.
func unsupported(param, format string, a ...any) error {
	return &apiError{http.StatusBadRequest, invalid, param, "unsupported", fmt.Sprintf(format, a...)}
}

// badValue refuses a value.
func badValue(param, format string, a ...any) error {
	return &apiError{http.StatusBadRequest, invalid, param, "invalid_value", fmt.Sprintf(format, a...)}
}

func noModel(id string) error {
	return &apiError{http.StatusNotFound, invalid, "model", "model_not_found", fmt.Sprintf("there is no model %q", id)}
}

var packagePrefix = regexp.MustCompile(`kvist/[a-z/]+: `)

// apiErrorOf turns an error of the runner into one of the API.
func apiErrorOf(err error) *apiError {
	var api *apiError
	message := packagePrefix.ReplaceAllString(err.Error(), "")
	var still *runner.StillSharedError
	switch {
	case errors.As(err, &api):
		return api
	case errors.As(err, &still):
		return &apiError{http.StatusBadGateway, "server_error", "", "store_unavailable", message}
	case errors.Is(err, context.DeadlineExceeded):
		return &apiError{http.StatusGatewayTimeout, "server_error", "", "timeout", "the answer took too long"}
	case errors.Is(err, context.Canceled):
		return &apiError{499, "server_error", "", "cancelled", "the request was cancelled"} // nobody reads it
	case errors.Is(err, quant.ErrTooLarge):
		return &apiError{http.StatusBadRequest, invalid, "messages", "context_length_exceeded", message}
	case errors.Is(err, quant.ErrFull):
		return &apiError{http.StatusTooManyRequests, "rate_limit_error", "", "overloaded", message}
	case errors.Is(err, quant.ErrBudget):
		return &apiError{http.StatusBadRequest, invalid, "messages", "budget_exceeded", message}
	case errors.Is(err, quant.ErrClosed):
		return &apiError{http.StatusNotFound, invalid, "", "not_found", message}
	case errors.Is(err, quant.ErrShape), errors.Is(err, quant.ErrUnsupported):
		return &apiError{http.StatusBadRequest, invalid, "", "invalid_value", message}
	}
	return &apiError{http.StatusInternalServerError, "server_error", "", "internal", message}
}

// body is the JSON of an error.
func (e *apiError) body() map[string]any {
	or := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	return map[string]any{"error": map[string]any{"message": e.Message, "type": e.Type, "param": or(e.Param),
		"code": or(e.Code)}}
}

// refuse writes an error in place of an answer.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := apiErrorOf(err)
	if e.status >= 500 || e.status == http.StatusTooManyRequests {
		s.cfg.Log.Warn("kvist: request failed", "path", r.URL.Path, "status", e.status, "error", e.Message)
	}
	if e.status == http.StatusTooManyRequests || e.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout)) // it may have waited
	writeJSON(w, e.status, e.body())
}
